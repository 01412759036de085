"""A kernel in canonical form: four-dimensional taps, and how an image's channels meet them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.errors import MalformedInputError, ShapeError
from deconv_cli.vocabulary import Size


@dataclass(frozen=True)
class Kernel:
    """Taps of shape `(C_out, C_in, kH, kW)`, as `conv2d` applies them.

    Attributes:
        taps: the taps, real.
        shared: a single plane that is applied to every channel alike. Channels are then a batch axis for the operators,
            whose `C_in` and `C_out` are 1.
    """

    taps: Tensor
    shared: bool

    @classmethod
    def from_tensor(cls, kernel: Tensor) -> Kernel:
        """Check a kernel and bring it into canonical form.

        Args:
            kernel: real, shape `(kH, kW)` or `(C_out, C_in, kH, kW)`.

        Raises:
            ShapeError: any other shape.
            MalformedInputError: the kernel is empty, zero, not real or not finite.
        """
        if kernel.ndim not in (2, 4):
            raise ShapeError(
                f"a kernel must have shape (kH, kW) or (C_out, C_in, kH, kW), but has {tuple(kernel.shape)}."
            )
        if kernel.numel() == 0:
            raise MalformedInputError(f"the kernel is empty: its shape is {tuple(kernel.shape)}.")
        if kernel.is_complex():
            raise MalformedInputError(f"a kernel must be real, but is {kernel.dtype}.")
        if not torch.isfinite(kernel).all():
            n_bad = int((~torch.isfinite(kernel)).sum())
            raise MalformedInputError(f"the kernel holds {n_bad} values that are NaN or infinite; mend it first.")
        if not kernel.any():
            raise MalformedInputError("every tap of the kernel is zero, so nothing of the image is left to restore.")
        shared = kernel.ndim == 2 or kernel.shape[:2] == (1, 1)
        return cls(kernel if kernel.ndim == 4 else kernel[None, None], shared)

    @property
    def size(self) -> Size:
        """Height and width."""
        return self.taps.shape[-2], self.taps.shape[-1]

    @property
    def dc_gain(self) -> list[list[float]]:
        """What the kernel makes of a constant image: the sum of the taps, `C_out` rows of `C_in`."""
        gains: list[list[float]] = self.taps.double().sum(dim=(-2, -1)).tolist()
        return gains

    def n_outputs(self, n_inputs: int) -> int:
        """Count the output channels for an image of `n_inputs` channels."""
        return n_inputs if self.shared else self.taps.shape[0]

    def split(self, images: Tensor, *, are_outputs: bool = False) -> Tensor:
        """Arrange images for the operators: `(*batch, C, H, W)` → `(*batch, C_in, H, W)`.

        Channels of a shared kernel join the batch: `(*batch, C, H, W)` → `(*batch, C, 1, H, W)`.

        Args:
            images: shape `(C, H, W)` or `(B, C, H, W)`.
            are_outputs: the images are outputs of the convolution, not inputs.

        Raises:
            ShapeError: the channels do not fit; the message names both shapes.
        """
        if images.ndim not in (3, 4):
            raise ShapeError(
                f"an image tensor must have shape (C, H, W) or (B, C, H, W), but has {tuple(images.shape)}; "
                "add the missing axes, for example image[None]."
            )
        if 0 in images.shape[:-2]:
            raise ShapeError(
                f"an image tensor must hold at least one image of one channel, but has shape {tuple(images.shape)}."
            )
        if self.shared:
            return images.unsqueeze(-3)
        expected = self.taps.shape[0 if are_outputs else 1]
        if images.shape[-3] != expected:
            raise ShapeError(
                f"the kernel of shape {tuple(self.taps.shape)} {'gives' if are_outputs else 'takes'} {expected} "
                f"channels, but the image of shape {tuple(images.shape)} has {images.shape[-3]}; "
                "use a kernel that fits, or one of shape (kH, kW) for every channel alike."
            )
        return images

    def join(self, images: Tensor) -> Tensor:
        """Undo `split`."""
        return images.squeeze(-3) if self.shared else images
