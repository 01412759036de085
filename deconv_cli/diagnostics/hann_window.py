"""A window that fades images out towards their edges, so that no jump between opposite edges looks like noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deconv_cli.diagnostics.modulus import squared_modulus
from deconv_cli.operators.axes import accumulation_dtype, space_axes


def apply_hann_window(images: Tensor, n_axes: int = 2) -> Tensor:
    """Fade images out towards their edges, and keep the power of white noise as it is.

    A mean stays what it is but for the two neighbors of the zero frequency along each axis.

    Args:
        images: shape `(*batch, C, *space)`.
        n_axes: how many axes of space there are.
    """
    return _fade(images.clone(), n_axes, power=1)


@dataclass(frozen=True, eq=False)
class FadedImages:
    """Images under such a window, in frequency and in double precision: computed once for all that looks at them.

    Attributes:
        images: shape `(n, C, *space)`.
        fade: power of the window; of a higher one less of a strong frequency leaks to distant weak ones.
    """

    images: Tensor
    fade: int = 1

    @classmethod
    def of(cls, images: Tensor, n_axes: int) -> FadedImages:
        """Take images of shape `(*batch, C, *space)`."""
        return cls(images.reshape(-1, *images.shape[-n_axes - 1 :]))

    @property
    def n_axes(self) -> int:
        """How many axes of space there are."""
        return self.images.ndim - 2

    @cached_property
    def spectrum(self) -> Tensor:
        """Unitary, of the frequencies of `torch.fft.rfftn`: complex, shape `(n, C, *plane)`."""
        faded = _fade(self.images.to(accumulation_dtype(self.images), copy=True), self.n_axes, self.fade)
        return torch.fft.rfftn(faded, dim=space_axes(self.n_axes), norm="ortho")

    @cached_property
    def power(self) -> Tensor:
        """The square of its size, shape `(n, C, *plane)`."""
        return squared_modulus(self.spectrum)

    @cached_property
    def mean_power(self) -> Tensor:
        """The same averaged over images and channels, shape `(*plane)`."""
        first, *others = self.power.flatten(0, 1)
        return sum(others, first) / (1 + len(others)) if others else first


def _fade(images: Tensor, n_axes: int, power: int) -> Tensor:
    for axis, length in zip(space_axes(n_axes), images.shape[-n_axes:], strict=True):
        angle = (torch.arange(length, dtype=images.dtype, device=images.device) + 0.5) * (2 * math.pi / length)
        along = (1 - angle.cos()) ** power
        images *= (along / along.square().mean().sqrt()).reshape(-1, *[1] * (-1 - axis))
    return images
