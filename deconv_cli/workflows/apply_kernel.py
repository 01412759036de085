"""Apply a kernel to an image, exactly as `torch.nn.functional.conv2d` and its like do."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deconv_cli.argument_types import check_type
from deconv_cli.errors import ShapeError, TooLargeError, UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.layer_options import LayerOptions, PerAxis
from deconv_cli.operators.boundaries.rule import BoundaryRule, as_rule
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.linear_operator import check_tensor
from deconv_cli.parts import BOUNDARIES
from deconv_cli.solvers.solver import free_memory
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.vocabulary import PaddingLike, check_dimensions, format_memory, format_size
from deconv_cli.workflows.arithmetic import as_any_kernel, check_image, pick_dtype
from deconv_cli.workflows.planes import Planes


def forward(
    x: Tensor,
    kernel: Tensor | KernelField,
    *,
    dimensions: int | None = None,
    padding: PaddingLike = "same",
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    groups: int = 1,
    transposed: bool = False,
    output_padding: PerAxis = 0,
    boundary: str = "zero",
    bias: Tensor | None = None,
    dtype: torch.dtype | str | None = None,
    tone_curve: ToneCurve | None = None,
) -> Tensor:
    """Convolve signals, images or stacks, as `torch.nn.functional.conv2d`, `conv_transpose2d` and their like do.

    Args:
        x: shape `(C_in, *size)` or `(B, C_in, *size)`, with one, two or three axes of space.
        kernel: taps of a cross-correlation, shape `(C_out, C_in, *k)`; one of shape `(*k)` or `(1, 1, *k)` is applied
            to every channel alike, one of shape `(C, *k)` to each channel its own. Or a `KernelField`, which varies
            over the frame.
        dimensions: axes of space of `x`: 1, 2 or 3. By default the kernel's axes tell: one is a signal's, five are a
            layer's of three dimensions, two to four a picture's. A kernel of fewer axes is applied to each plane, or
            line, by itself.
        padding: `same`, `valid`, `full`, a whole number, or one for each axis that the kernel spans; of a transposed
            layer what is cut off its output.
        stride: pixels from one output to the next, one number or one for each axis, as in torch.
        dilation: pixels from one tap to the next.
        groups: sets of channels that the kernel does not mix; it is then of the shape `(C_out, C_in / groups, *k)`.
        transposed: apply a transposed convolution; the kernel is then of the shape `(C_in, C_out / groups, *k)`.
        output_padding: of a transposed layer, by how many pixels its output is larger than the smallest possible.
        boundary: what lies outside the image: `zero`, `circular`, `reflect`, `symmetric` or `replicate`.
        bias: added to each output channel, shape `(C_out,)`.
        dtype: precision of the arithmetic; by default float64 for float64 images, else float32.
        tone_curve: how the images encode light, for a convolution that acts on light: it is undone before and done
            again after.

    Returns:
        Shape `(C_out, *output_size)` or `(B, C_out, *output_size)`, on the device of `x`.

    Raises:
        ShapeError: kernel, bias and image do not fit one another.
        UsageError: an unknown boundary or padding.
        TooLargeError: the images with their border do not fit the memory.
        MalformedInputError: images or kernels that are not finite.
    """
    rule = as_rule(boundary)
    refuse_unknown(rule)
    check_image(x, "the image")
    if tone_curve is not None:
        check_type(tone_curve, ToneCurve, "tone_curve")
    dimensions = check_dimensions(dimensions)
    precision = pick_dtype(dtype, x, x.device)
    layer = LayerOptions(
        stride=stride, dilation=dilation, groups=groups, transposed=transposed, output_padding=output_padding
    )
    canonical = as_any_kernel(kernel, x.device, precision, dimensions).with_layer(layer)
    planes = Planes.of(x, canonical, dimensions)
    if planes is not None:
        x = planes.split(x)
    n_axes, axis = canonical.n_axes, canonical.channel_axis
    samples = x.to(precision) if tone_curve is None else tone_curve.to_light(x.to(precision), n_axes)
    if canonical.is_per_channel:
        canonical.check_channels(x)
        pairs = enumerate(samples.split(1, dim=axis))
        y = torch.cat([_convolve(image, canonical.of_channel(c), padding, rule) for c, image in pairs], dim=axis)
    else:
        y = _convolve(samples, canonical, padding, rule)
    biased = y if bias is None else y + as_bias(bias, y, n_axes)
    stored = biased if tone_curve is None else tone_curve.to_stored(biased, n_axes)
    return stored if planes is None else planes.join(stored)


def refuse_unknown(rule: BoundaryRule) -> None:
    """Refuse a boundary that says nothing about the pixels outside.

    Raises:
        UsageError: it is one.
    """
    if rule.is_unknown:
        others = [name for name in BOUNDARIES if not as_rule(name).is_unknown]
        raise UsageError(
            f"boundary {rule.name} says nothing about the pixels outside, so there is nothing to convolve; "
            f"choose {', '.join(others[:-1])} or {others[-1]}, or padding valid."
        )


def _convolve(x: Tensor, kernel: Kernel, padding: PaddingLike, rule: BoundaryRule) -> Tensor:
    channels = kernel.split(x)
    geometry = kernel.geometry(tuple(x.shape[-kernel.n_axes :]), padding)
    _check_memory(channels, kernel, geometry)
    return kernel.join(kernel.convolution(geometry, rule).forward(channels))


def _check_memory(channels: Tensor, kernel: Kernel, geometry: Geometry) -> None:
    """Refuse images whose border would not fit the memory."""
    n_images = math.prod(channels.shape[: -len(geometry.image_size) - 1])
    n_pixels = math.prod(geometry.extended_size)
    needed = channels.itemsize * n_images * n_pixels * sum(kernel.taps.shape[:2])
    available = free_memory(channels.device)
    if needed > available:
        size = format_size(geometry.extended_size)
        raise TooLargeError(
            f"with its border the image is {size} pixels, which takes about {format_memory(needed)}, more than the "
            f"{format_memory(available)} that are free; use a smaller padding or a smaller image."
        )


def as_bias(bias: Tensor, outputs: Tensor, n_axes: int) -> Tensor:
    """Shape a bias so that it adds to outputs `(*batch, C_out, *size)` with `n_axes` axes of space.

    Raises:
        ShapeError: the bias has another length than the outputs have channels.
    """
    check_tensor(bias, "the bias")
    n_channels = outputs.shape[-n_axes - 1]
    if bias.shape != (n_channels,):
        raise ShapeError(
            f"a bias must have one number for each output channel, shape ({n_channels},), "
            f"but has shape {tuple(bias.shape)}."
        )
    return bias.to(outputs.device, outputs.dtype).reshape(-1, *[1] * n_axes)


def subtract_bias(y: Tensor, bias: Tensor | None, n_axes: int) -> Tensor:
    """Take the bias of each output channel, if there is one, off outputs `(*batch, C_out, *size)`.

    Raises:
        ShapeError: the bias has another length than the outputs have channels.
    """
    return y if bias is None else y - as_bias(bias, y, n_axes)
