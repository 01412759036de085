"""Spectra of images that fade out towards their edges, and bins of frequencies by size and direction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import accumulation_dtype, space_axes, squared_modulus
from deconv_cli.vocabulary import Size


@dataclass(frozen=True, eq=False)
class FadedImages:
    """Spectra of images under a Hann window, in double precision. The power of white noise stays as it is.

    Attributes:
        images: shape `(n, C, *space)`.
        fade: power of the window. With a higher one, less of a strong frequency leaks to distant weak ones.
    """

    images: Tensor
    fade: int = 1

    @classmethod
    def of(cls, images: Tensor, n_axes: int) -> FadedImages:
        """Take images of shape `(*batch, C, *space)`."""
        return cls(images.reshape(-1, *images.shape[-n_axes - 1 :]))

    @property
    def n_axes(self) -> int:
        """Number of axes of space."""
        return self.images.ndim - 2

    @cached_property
    def spectrum(self) -> Tensor:
        """Unitary transform at the frequencies of `torch.fft.rfftn`: complex, shape `(n, C, *plane)`."""
        faded = self.images.to(accumulation_dtype(self.images), copy=True)
        axes = space_axes(self.n_axes)
        for axis, length in zip(axes, faded.shape[2:], strict=True):
            angle = (torch.arange(length, dtype=faded.dtype, device=faded.device) + 0.5) * (2 * math.pi / length)
            along = (1 - angle.cos()) ** self.fade
            faded *= (along / along.square().mean().sqrt()).reshape(-1, *[1] * (-1 - axis))
        return torch.fft.rfftn(faded, dim=axes, norm="ortho")

    @cached_property
    def power(self) -> Tensor:
        """Squared modulus of the spectrum, shape `(n, C, *plane)`."""
        return squared_modulus(self.spectrum)

    @cached_property
    def mean_power(self) -> Tensor:
        """Power averaged over images and channels, shape `(*plane)`."""
        first, *others = self.power.flatten(0, 1)
        return sum(others, first) / (1 + len(others)) if others else first


LOWEST = 0.015
"""Cycles a pixel; the bins leave out lower frequencies."""
_N_RADIAL, _N_ANGULAR = 96, 12
_N_LEVELS = 4
"""In space, sectors are cut at this number of levels along each axis."""


def frequency_grid(torus: Size, like: Tensor) -> Tensor:
    """Tabulate the frequencies of `torch.fft.rfftn` in radians a pixel, in the precision and on the device of `like`.

    The shape is `(*torus[:-1], torus[-1] // 2 + 1, n_axes)`.
    """
    last = len(torus) - 1
    lines = [
        (torch.fft.rfftfreq if axis == last else torch.fft.fftfreq)(n, dtype=like.dtype, device=like.device)
        for axis, n in enumerate(torus)
    ]
    return 2 * math.pi * torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1)


def directional_functions(units: Tensor) -> list[Tensor]:
    """Evaluate the constant and the even functions of second degree of unit vectors `(*, n_axes)`, shape `(*,)` each.

    Those are cos 2φ and sin 2φ in a plane, five in space, and none on a line.
    """
    n_axes = units.shape[-1]
    parts = units.unbind(-1)
    last = parts[-1]
    pure = [last.square() - part.square() for part in parts[:-1]]
    mixed = [2 * parts[i] * parts[j] for i in range(n_axes) for j in range(i + 1, n_axes)]
    return [torch.ones_like(last), *pure, *mixed]


@dataclass(frozen=True, eq=False)
class PolarBins:
    """The n bins with at least one frequency, and the frequencies of `torch.fft.rfftn` in each.

    Attributes:
        index: the bin of each frequency, shape `(F,)`.
        weight: half of how often each frequency occurs in the full spectrum, 0 below `LOWEST`, shape `(F,)`.
        count: sums of the weights, shape `(n,)`.
        radius: mean cycles a pixel, shape `(n,)`.
        directions: means of the functions of second degree of the direction, shape `(n,)` each.
    """

    index: Tensor
    weight: Tensor
    count: Tensor
    radius: Tensor
    directions: tuple[Tensor, ...]

    def mean(self, values: Tensor) -> Tensor:
        """Average values at the frequencies of `torch.fft.rfftn` over each bin, shape `(n,)`."""
        weighted = self.weight.to(self.count.dtype) * values.flatten()
        return _summed(self.index.long(), weighted, len(self.count)) / self.count


@lru_cache(maxsize=4)  # six bytes a frequency
def polar_bins(torus: Size, dtype: torch.dtype, device: torch.device) -> PolarBins:
    """Lay out the bins on a torus `(N1, N2, ...)`."""
    waves = frequency_grid(torus, torch.empty(0, dtype=dtype, device=device)) / (2 * math.pi)
    radius = torch.linalg.vector_norm(waves, dim=-1)
    units = waves / torch.where(radius > 0, radius, 1)[..., None]
    ring = (radius * (_N_RADIAL / (0.5 * math.sqrt(len(torus))))).long().clamp_max(_N_RADIAL - 1)
    sector, n_sectors = _sectors(units)
    index = (ring * n_sectors + sector).flatten()
    last = waves[..., -1]
    weight = (torch.where((last == 0) | (last > 0.5 - 1e-4), 0.5, 1.0) * (radius >= LOWEST)).to(dtype).flatten()
    counts = _summed(index, weight, _N_RADIAL * n_sectors)
    kept = synchronize.places(counts > 0)
    place = torch.zeros_like(counts, dtype=torch.int64).index_copy_(0, kept, torch.arange(len(kept), device=device))
    index, count = place[index], counts[kept]
    radius, *directions = (
        _summed(index, weight * values.flatten(), len(kept)) / count
        for values in (radius, *directional_functions(units)[1:])
    )
    return PolarBins(index.int(), weight.half(), count, radius, tuple(directions))


def _summed(index: Tensor, values: Tensor, n_bins: int) -> Tensor:
    # A single pixel has no bins; then the index is arbitrary.
    return values.new_zeros(max(n_bins, 1)).scatter_add(0, index, values)[:n_bins]


def _sectors(units: Tensor) -> tuple[Tensor, int]:
    """Give each direction the number of its sector, the same for opposite directions; count the sectors."""
    if units.shape[-1] == 2:
        angle = torch.atan2(units[..., 0], units[..., 1])
        return ((angle / math.pi + 0.5) * _N_ANGULAR).long().clamp_max(_N_ANGULAR - 1), _N_ANGULAR
    sector = torch.zeros_like(units[..., 0], dtype=torch.int64)
    for part in units.unbind(-1)[:-1]:  # the last one has no sign
        level = ((part + 1) * (_N_LEVELS / 2)).long().clamp_max(_N_LEVELS - 1)
        sector = sector * _N_LEVELS + level
    return sector, _N_LEVELS ** (units.shape[-1] - 1)
