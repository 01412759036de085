"""A kernel in canonical form: taps with their channels, and how an image's channels meet them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deconv_cli.errors import MalformedInputError, ShapeError, UsageError
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.layer_options import PLAIN, LayerOptions
from deconv_cli.operators.axes import resized, space_axes
from deconv_cli.operators.boundary_rules import BoundaryRule
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.geometry import Geometry, Padding, pick_input_size
from deconv_cli.operators.layer_convolution import LayerConvolution, check_groups
from deconv_cli.operators.linear_operator import check_image
from deconv_cli.operators.varying_convolution import VaryingConvolution
from deconv_cli.parts import ShownInNotebook
from deconv_cli.vocabulary import AXES_BY_SHAPE, Size, format_percent, format_size

AXIS_NAMES = ("D", "H", "W")
"""What the axes of space are called in messages, the last ones first needed."""


WEIGHT_CUT_OFF, WEIGHT_OUTSIDE = 1e-3, 0.25
"""The part of the weight of a kernel that may be cut off, and that which may lie farther out than a picture reaches."""


@dataclass(frozen=True)
class Kernel(ShownInNotebook):
    """Taps of a cross-correlation, as `torch.nn.functional.conv2d` and its like apply them.

    Attributes:
        taps: real, shape `(C_out, C_in, *k)`; of a layer as torch stores them, `(C_out, C_in / groups, *k)` or
            `(C_in, C_out / groups, *k)` where it is transposed.
        shared: one set of taps is applied to every channel alike. Channels are then a batch axis for the operators,
            whose `C_in` and `C_out` are 1.
        is_per_channel: `taps[c]`, of shape `(1, *k)`, is applied to channel c alone. No operator takes such a kernel;
            `of_channel` gives one for each channel.
        field: the kernels of all places, where they vary over the frame; `taps` are then those in the middle.
        layer: stride, dilation, groups and direction.
    """

    taps: Tensor
    shared: bool
    is_per_channel: bool = False
    field: KernelField | None = None
    layer: LayerOptions = PLAIN

    def __repr__(self) -> str:
        """Describe it in one line."""
        layer = "" if self.layer.is_plain else f", {self.layer.describe()}"
        return f"Kernel({format_size(self.all_taps.shape)} taps{layer})"

    @classmethod
    def from_tensor(cls, kernel: Tensor, dtype: torch.dtype | None = None, *, dimensions: int | None = None) -> Kernel:
        """Check a kernel and bring it into canonical form.

        Args:
            kernel: real, shape `(*k)` or `(C_out, C_in, *k)`.
            dtype: of the arithmetic; by default that of the kernel.
            dimensions: axes of space of the images: 1, 2 or 3; `None` takes what the axes of the kernel tell (see
                `count_axes`). A kernel of fewer axes spans the last ones.

        Raises:
            ShapeError: any other shape.
            MalformedInputError: the kernel is empty, zero, not real or not finite, or the square of its largest tap is
                beyond the range of the dtype.
        """
        n_axes = count_axes(kernel, dimensions)
        if kernel.ndim == n_axes + 1:
            raise ShapeError(
                f"only invert and forward take a kernel for each channel, of shape {tuple(kernel.shape)}; here give "
                f"the kernel of one channel, of shape ({name_taps(n_axes)})"
                + (", or dimensions=3 with one of three axes." if dimensions is None and kernel.ndim == 3 else ".")
            )
        if kernel.numel() == 0:
            raise MalformedInputError(f"the kernel is empty: its shape is {tuple(kernel.shape)}.")
        check_image(kernel, "the kernel")
        if not kernel.any():
            raise MalformedInputError("every tap of the kernel is zero, so the data contain nothing of the image.")
        _check_range(kernel, dtype or kernel.dtype)
        kernel = kernel if dtype is None else kernel.to(dtype)
        taps = kernel if kernel.ndim == n_axes + 2 else kernel[None, None]
        return cls(taps, shared=taps is not kernel or taps.shape[:2] == (1, 1))

    @classmethod
    def of_any(
        cls, kernel: Tensor | KernelField, dtype: torch.dtype | None = None, *, dimensions: int | None = None
    ) -> Kernel:
        """Do the same for kernels that may be one for each channel, shape `(C, *k)`, or vary over the frame.

        Raises:
            UsageError: the taps of a field require a gradient.
        """
        if isinstance(kernel, KernelField):
            if dimensions == 1:
                raise ShapeError("a kernel that varies over the frame needs two axes, but dimensions is 1.")
            if kernel.taps.requires_grad and torch.is_grad_enabled():
                raise UsageError("a kernel that varies over the frame has no gradient; detach its taps.")
            field = kernel if dtype is None else replace(kernel, taps=kernel.taps.to(dtype))
            return replace(cls.from_tensor(kernel.middle, dtype), field=field)
        n_axes = count_axes(kernel, dimensions)
        if kernel.ndim != n_axes + 1:
            return cls.from_tensor(kernel, dtype, dimensions=dimensions)
        for taps in kernel:
            cls.from_tensor(taps, dtype, dimensions=n_axes)
        layer = cls.from_tensor(kernel[:, None], dtype, dimensions=n_axes)
        return cls(layer.taps, shared=False, is_per_channel=True)

    def of_channel(self, channel: int) -> Kernel:
        """Return the kernel of one channel, if each channel has its own."""
        return Kernel(self.taps[channel : channel + 1], shared=True, layer=self.layer)

    def with_layer(self, layer: LayerOptions) -> Kernel:
        """Return the kernel of a layer with this stride, dilation, groups and direction.

        Raises:
            ShapeError: the groups do not divide the channels of the taps.
            UsageError: the kernel is of another kind, or there are options for another number of axes.
        """
        layer.over_axes(self.n_axes)
        if layer.is_plain:
            return replace(self, layer=layer)
        if self.field is not None:
            raise UsageError(
                f"a kernel that varies over the frame slides by single pixels, and takes no {layer.describe()}."
            )
        if self.is_per_channel and layer.groups > 1:
            n_first, n_axes = self.taps.shape[0], self.n_axes
            raise ShapeError(
                f"the kernel of shape {(n_first, *self.size)} was read as one of {n_axes} axes for each of {n_first} "
                f"channels, which has no groups; give taps as torch stores them, (C_out, C_in / groups, "
                f"{name_taps(n_axes)}), or another number of dimensions."
            )
        check_groups(self.taps, layer)
        return replace(self, layer=layer)

    def geometry(self, image_size: Size, padding: Padding) -> Geometry:
        """Lay out the sizes for an image; see `Geometry.of_image`."""
        return Geometry.of_image(image_size, self.size, padding, self.layer)

    def geometry_of_output(self, output_size: Size, padding: Padding, input_size: Size | None = None) -> Geometry:
        """Lay out the sizes for an output.

        With a stride several images give an output; `input_size` chooses (see `pick_input_size`).

        Raises:
            ShapeError: no image gives such an output, or no image of the given size.
        """
        return self.geometry(pick_input_size(output_size, self.size, padding, self.layer, input_size), padding)

    def cropped_to(self, image_size: Size) -> Kernel:
        """Cut off taps around the middle that carry no weight, if there are more than pixels along every axis.

        Raises:
            ShapeError: these taps carry much of the weight.
        """
        if self.field is not None or any(k <= n for k, n in zip(self.size, image_size, strict=True)):
            return self
        kept = tuple(n - (k - n) % 2 for k, n in zip(self.size, image_size, strict=True))
        middle = resized(self.taps, kept)
        outside = 1 - middle.abs().sum() / self.taps.abs().sum()
        if outside > WEIGHT_OUTSIDE and self.n_axes == 2:  # the computed blur of a stack may be twice as large
            raise ShapeError(
                f"the kernel of {format_size(self.size)} taps is larger than the picture of "
                f"{format_size(image_size)} pixels, and {format_percent(float(outside))} of its weight lies farther "
                "out than the picture reaches; give a kernel that is no larger, or a larger part of the picture."
            )
        return replace(self, taps=middle) if outside <= WEIGHT_CUT_OFF else self

    @property
    def size(self) -> Size:
        """Taps along each axis of space."""
        return tuple(self.taps.shape[2:])

    @property
    def n_axes(self) -> int:
        """Axes of space."""
        return self.taps.ndim - 2

    @property
    def channel_axis(self) -> int:
        """The axis of channels of an image, counted from the end."""
        return -self.n_axes - 1

    @property
    def is_varying(self) -> bool:
        """Whether the kernel varies over the frame."""
        return self.field is not None

    @property
    def all_taps(self) -> Tensor:
        """The taps, or those of all places of a field, shape `(n, m, *k)`."""
        return self.taps if self.field is None else self.field.taps

    def with_all_taps(self, taps: Tensor) -> Kernel:
        """Give the same kernel with other taps, of the shape of `all_taps`."""
        if self.field is None:
            return replace(self, taps=taps)
        field = replace(self.field, taps=taps)
        return replace(self, taps=field.middle[None, None], field=field)

    def convolution(self, geometry: Geometry, boundary: str | BoundaryRule) -> Convolution:
        """Build the convolution of images of one channel, or of as many as the kernel mixes."""
        if not self.layer.is_plain:
            pads = geometry.pads
            return LayerConvolution(self.taps, geometry.image_size, self.layer, padding=pads, boundary=boundary)
        if self.field is None:
            return Convolution.of_geometry(self.taps, geometry, boundary)
        field = self.field
        return VaryingConvolution(
            field.taps, field.rows, field.columns, geometry.image_size, padding=geometry.pads, boundary=boundary
        )

    def detached(self) -> Kernel:
        """Return a copy outside of any graph, which does not change with the caller's taps."""
        taps = self.taps.detach().clone()
        if self.field is None:
            return replace(self, taps=taps)
        return replace(self, taps=taps, field=replace(self.field, taps=self.field.taps.detach().clone()))

    @property
    def dc_gain(self) -> list[list[float]]:
        """The output for a constant image: the sum of the taps, a row for each entry of their first axis."""
        gains: list[list[float]] = self.taps.double().sum(dim=space_axes(self.n_axes)).tolist()
        return gains

    def n_outputs(self, n_inputs: int) -> int:
        """Count the output channels for an image of `n_inputs` channels."""
        return n_inputs if self.shared else self.n_channels[0]

    def n_inputs(self, n_outputs: int) -> int:
        """Count the channels of the image that gave `n_outputs` channels."""
        return n_outputs if self.shared else self.n_channels[1]

    @property
    def n_channels(self) -> tuple[int, int]:
        """Channels of the outputs and of the images, as far as the kernel fixes them: 1 where it is shared."""
        first, second = self.taps.shape[0], self.taps.shape[1] * self.layer.groups
        if self.is_per_channel:
            return first, first
        return (second, first) if self.layer.transposed else (first, second)

    def check_channels(self, images: Tensor) -> None:
        """Refuse images that have not one channel for each kernel.

        Raises:
            ShapeError: there are more or fewer; the message names both.
        """
        self.check_axes(images)
        expected, found = self.taps.shape[0], images.shape[self.channel_axis]
        if found != expected:
            may_be_stacks = self.n_axes == 2 and max(images.shape[:-2]) > 1 and found not in (3, 4)  # colors
            raise ShapeError(
                f"the kernel of shape {(expected, *self.size)} is for {expected} channels, but the image of "
                f"{format_size(images.shape[-self.n_axes :])} samples has {found}; give one of shape "
                f"({name_taps(self.n_axes)}) for all channels, or one for each of them"
                f"{', or choose dimensions=3 for stacks' if may_be_stacks else ''}."
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
        self.check_axes(images)
        if self.shared:
            return images.unsqueeze(self.channel_axis)
        expected, found = self.n_channels[0 if are_outputs else 1], images.shape[self.channel_axis]
        if found != expected:
            taps, size = name_taps(self.n_axes), format_size(images.shape[-self.n_axes :])
            raise ShapeError(
                f"the kernel of shape {tuple(self.taps.shape)} {'gives' if are_outputs else 'takes'} {expected} "
                f"channels, but the image of {size} samples has {found}; use a kernel that fits, one of shape ({taps}) "
                f"for all channels, or (C, {taps}) for one kernel per channel."
            )
        return images

    def check_axes(self, images: Tensor) -> None:
        """Refuse, by `ShapeError`, images whose axes are not `(C, *size)` or `(B, C, *size)`, or empty ones."""
        n_axes = self.n_axes
        if images.ndim not in (n_axes + 1, n_axes + 2):
            axes = ", ".join(("C", *AXIS_NAMES[-n_axes:]))
            advice = "add the missing axes, for example image[None]"
            if images.ndim > n_axes + 2:
                advice = (
                    "a kernel with fewer axes works plane by plane if dimensions gives the number of axes of the images"
                )
            raise ShapeError(
                f"an image tensor must have shape ({axes}) or (B, {axes}), but has {tuple(images.shape)}; {advice}."
            )
        if 0 in images.shape[:-n_axes]:
            raise ShapeError(
                f"an image tensor must hold at least one image of one channel, but has shape {tuple(images.shape)}."
            )

    def join(self, images: Tensor) -> Tensor:
        """Undo `split`."""
        return images.squeeze(self.channel_axis) if self.shared else images


def count_axes(kernel: Tensor, dimensions: int | None = None) -> int:
    """Count the axes of space that a kernel of shape `(*k)`, `(C, *k)` or `(C_out, C_in, *k)` spans.

    A kernel with fewer axes than the `dimensions` of the images spans the last of them. With `None`, one axis means a
    signal, five axes a layer of three dimensions, and two to four axes pictures. Another number of axes is a
    `ShapeError`.
    """
    n_axes = AXES_BY_SHAPE.get(kernel.ndim) if dimensions is None else min(dimensions, kernel.ndim)
    if not n_axes or kernel.ndim > n_axes + 2:
        wanted = [2] if dimensions is None else [dimensions]
        shapes = " or ".join(f"({name_taps(n)}) or (C_out, C_in, {name_taps(n)})" for n in wanted)
        raise ShapeError(f"a kernel must have shape {shapes}, but has {tuple(kernel.shape)}.")
    return n_axes


def name_taps(n_axes: int) -> str:
    """Name the axes of a kernel in a message: `kH, kW` for two."""
    return ", ".join(f"k{axis}" for axis in AXIS_NAMES[-n_axes:])


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
            f"the largest tap of the kernel is {float(largest):.3g}, so {word} that its square exceeds the range of "
            f"{str(dtype).removeprefix('torch.')}; scale the kernel, for example to a sum of 1."
        )


def stack_kernels(kernels: Sequence[Tensor]) -> Tensor:
    """Bring kernels to one size by zeros around them, their origins at one place: `(*k)` each, to `(C, *k)`."""
    size = tuple(max(lengths) for lengths in zip(*(kernel.shape for kernel in kernels), strict=True))
    dtype = torch.float64 if any(kernel.dtype == torch.float64 for kernel in kernels) else kernels[0].dtype
    return torch.stack([resized(kernel.to(dtype), size) for kernel in kernels])
