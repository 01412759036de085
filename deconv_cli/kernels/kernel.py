"""A kernel in canonical form: taps with their channels, and how an image's channels meet them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deconv_cli.errors import MalformedInputError, ShapeError, UsageError
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.operators.axes import space_axes
from deconv_cli.operators.boundaries.rule import BoundaryRule
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.varying_convolution import VaryingConvolution
from deconv_cli.vocabulary import Size

AXIS_NAMES = ("D", "H", "W")
"""What the axes of space are called in messages, the last ones first needed."""


@dataclass(frozen=True)
class Kernel:
    """Taps of a cross-correlation, as `torch.nn.functional.conv2d` and its like apply them.

    Attributes:
        taps: real, shape `(C_out, C_in, *k)`.
        shared: one set of taps is applied to every channel alike. Channels are then a batch axis for the operators,
            whose `C_in` and `C_out` are 1.
        is_per_channel: `taps[c]`, of shape `(1, *k)`, is applied to channel c alone. No operator takes such a kernel;
            `of_channel` gives one for each channel.
        field: the kernels of all places, where they vary over the frame; `taps` are then those in the middle.
    """

    taps: Tensor
    shared: bool
    is_per_channel: bool = False
    field: KernelField | None = None

    @classmethod
    def from_tensor(cls, kernel: Tensor, dtype: torch.dtype | None = None) -> Kernel:
        """Check a kernel and bring it into canonical form.

        Args:
            kernel: real, shape `(kH, kW)` or `(C_out, C_in, kH, kW)`.
            dtype: of the arithmetic; by default that of the kernel.

        Raises:
            ShapeError: any other shape.
            MalformedInputError: the kernel is empty, zero, not real or not finite, or the square of its largest tap is
                beyond what the dtype can hold.
        """
        if kernel.ndim == 3:
            raise ShapeError(
                f"a kernel for each channel, of shape {tuple(kernel.shape)}, is taken by invert and forward alone; "
                "here give the kernel of one channel, of shape (kH, kW)."
            )
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
            raise MalformedInputError(f"the kernel holds {n_bad} values that are NaN or infinite; correct it first.")
        if not kernel.any():
            raise MalformedInputError("every tap of the kernel is zero, so nothing of the image is left to restore.")
        _check_range(kernel, dtype or kernel.dtype)
        kernel = kernel if dtype is None else kernel.to(dtype)
        shared = kernel.ndim == 2 or kernel.shape[:2] == (1, 1)
        return cls(kernel if kernel.ndim == 4 else kernel[None, None], shared)

    @classmethod
    def of_any(cls, kernel: Tensor | KernelField, dtype: torch.dtype | None = None) -> Kernel:
        """Do the same for kernels that may be one for each channel, shape `(C, kH, kW)`, or vary over the frame.

        Raises:
            UsageError: a derivative in a field is wanted.
        """
        if isinstance(kernel, KernelField):
            if kernel.taps.requires_grad and torch.is_grad_enabled():
                raise UsageError("nothing is differentiated in a kernel that varies over the frame; detach its taps.")
            field = kernel if dtype is None else replace(kernel, taps=kernel.taps.to(dtype))
            return replace(cls.from_tensor(kernel.middle, dtype), field=field)
        if kernel.ndim != 3:
            return cls.from_tensor(kernel, dtype)
        for taps in kernel:
            cls.from_tensor(taps, dtype)
        return cls(cls.from_tensor(kernel[:, None], dtype).taps, shared=False, is_per_channel=True)

    def of_channel(self, channel: int) -> Kernel:
        """Give the kernel of one channel, where there is one for each."""
        return Kernel(self.taps[channel : channel + 1], shared=True)

    @property
    def size(self) -> Size:
        """Taps along each axis of space."""
        return tuple(self.taps.shape[2:])

    @property
    def is_varying(self) -> bool:
        """Whether the kernel varies over the frame."""
        return self.field is not None

    @property
    def all_taps(self) -> Tensor:
        """The taps, or those of all places of a field, shape `(n, m, *k)`."""
        return self.taps if self.field is None else self.field.taps

    def convolution(self, geometry: Geometry, boundary: str | BoundaryRule) -> Convolution:
        """Build the convolution of images of one channel, or of as many as the kernel mixes."""
        if self.field is None:
            return Convolution.of_geometry(self.taps, geometry, boundary)
        field = self.field
        return VaryingConvolution(
            field.taps, field.rows, field.columns, geometry.image_size, padding=geometry.pads, boundary=boundary
        )

    def detached(self) -> Kernel:
        """Give a kernel of its own, which serves no graph and does not change with the caller's."""
        taps = self.taps.detach().clone()
        if self.field is None:
            return replace(self, taps=taps)
        return replace(self, taps=taps, field=replace(self.field, taps=self.field.taps.detach().clone()))

    @property
    def dc_gain(self) -> list[list[float]]:
        """What the kernel makes of a constant image: the sum of the taps, `C_out` rows of `C_in`."""
        gains: list[list[float]] = self.taps.double().sum(dim=space_axes(len(self.size))).tolist()
        return gains

    def n_outputs(self, n_inputs: int) -> int:
        """Count the output channels for an image of `n_inputs` channels."""
        return n_inputs if self.shared else self.taps.shape[0]

    def n_inputs(self, n_outputs: int) -> int:
        """Count the channels of the image that gave `n_outputs` channels."""
        if self.shared:
            return n_outputs
        return self.taps.shape[0 if self.is_per_channel else 1]

    def check_channels(self, images: Tensor) -> None:
        """Refuse images that have not one channel for each kernel.

        Raises:
            ShapeError: there are more or fewer; the message names both.
        """
        self._check_axes(images)
        expected, found = self.taps.shape[0], images.shape[-len(self.size) - 1]
        if found != expected:
            raise ShapeError(
                f"the kernel of shape {(expected, *self.size)} is one for each of {expected} channels, but the image "
                f"of shape {tuple(images.shape)} has {found}; give one for each, or one of shape (kH, kW) for all."
            )

    def split(self, images: Tensor, *, are_outputs: bool = False) -> Tensor:
        """Arrange images for the operators: `(*batch, C, *size)` → `(*batch, C_in, *size)`.

        Channels of a shared kernel join the batch: `(*batch, C, *size)` → `(*batch, C, 1, *size)`.

        Args:
            images: shape `(C, *size)` or `(B, C, *size)`.
            are_outputs: the images are outputs of the convolution, not inputs.

        Raises:
            ShapeError: the channels do not fit; the message names both shapes.
        """
        self._check_axes(images)
        n_axes = len(self.size)
        if self.shared:
            return images.unsqueeze(-n_axes - 1)
        expected, found = self.taps.shape[0 if are_outputs else 1], images.shape[-n_axes - 1]
        if found != expected:
            raise ShapeError(
                f"the kernel of shape {tuple(self.taps.shape)} {'gives' if are_outputs else 'takes'} {expected} "
                f"channels, but the image of shape {tuple(images.shape)} has {found}; "
                "use a kernel that fits, one of shape (kH, kW) for all channels, or (C, kH, kW) for each its own."
            )
        return images

    def _check_axes(self, images: Tensor) -> None:
        n_axes = len(self.size)
        if images.ndim not in (n_axes + 1, n_axes + 2):
            axes = ", ".join(("C", *AXIS_NAMES[-n_axes:]))
            raise ShapeError(
                f"an image tensor must have shape ({axes}) or (B, {axes}), but has {tuple(images.shape)}; "
                "add the missing axes, for example image[None]."
            )
        if 0 in images.shape[:-n_axes]:
            raise ShapeError(
                f"an image tensor must hold at least one image of one channel, but has shape {tuple(images.shape)}."
            )

    def join(self, images: Tensor) -> Tensor:
        """Undo `split`."""
        return images.squeeze(-len(self.size) - 1) if self.shared else images


def _check_range(kernel: Tensor, dtype: torch.dtype) -> None:
    """Refuse taps that singular values, sums of squares, cannot be computed from.

    Raises:
        MalformedInputError: the square of the largest tap overflows or underflows in the dtype of the arithmetic.
    """
    if not dtype.is_floating_point:
        return
    largest = kernel.detach().abs().max().double()
    limits = torch.finfo(dtype)
    if not limits.tiny <= float(largest.square()) <= limits.max:
        word = "large" if largest > 1 else "small"
        raise MalformedInputError(
            f"the largest tap of the kernel is {float(largest):.3g}, so {word} that its square is beyond the range of "
            f"{str(dtype).removeprefix('torch.')}; scale the kernel, for example to a sum of 1."
        )


def stack_kernels(kernels: Sequence[Tensor]) -> Tensor:
    """Bring kernels to one size by zeros around them, their origins at one place: `(kH, kW)` each, to `(C, kH, kW)`."""
    height, width = (max(kernel.shape[axis] for kernel in kernels) for axis in (0, 1))
    dtype = torch.float64 if any(kernel.dtype == torch.float64 for kernel in kernels) else kernels[0].dtype
    stacked = torch.zeros(len(kernels), height, width, dtype=dtype)
    for plane, kernel in zip(stacked, kernels, strict=True):
        rows, columns = kernel.shape
        top, left = (height - 1) // 2 - (rows - 1) // 2, (width - 1) // 2 - (columns - 1) // 2
        plane[top : top + rows, left : left + columns] = kernel
    return stacked
