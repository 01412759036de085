"""Simulate measurements: apply a kernel as torch's convolutions do, or custom taps, and add noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from deconv_cli.errors import MalformedInputError, ShapeError, TooLargeError, UsageError, check_type
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.kernels.nonnegative_taps import LEAST_NEGATIVE, MOST_NEGATIVE, negative_share, without_negative_taps
from deconv_cli.layer_options import LayerOptions, PerAxis
from deconv_cli.operators import synchronize
from deconv_cli.operators.boundary_rules import BoundaryRule, as_rule
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.linear_operator import check_image, check_tensor
from deconv_cli.operators.synchronize import free_memory
from deconv_cli.operators.tap_convolution import Tap, check_elementwise, convolve_taps
from deconv_cli.parts import BOUNDARIES, TAPS
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.vocabulary import PaddingLike, check_dimensions, format_memory, format_percent, format_size
from deconv_cli.workflows.arithmetic import Planes, as_any_kernel, check_single_kernel, pick_dtype

Taps = TypeVar("Taps", Tensor, KernelField, Tensor | KernelField)


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
    """Convolve signals, images or stacks, as `torch.nn.functional.conv2d`, `conv_transpose2d` and related functions do.

    Args:
        x: shape `(C_in, *size)` or `(B, C_in, *size)`, with one, two or three axes of space.
        kernel: taps of a cross-correlation, shape `(C_out, C_in, *k)`; one of shape `(*k)` or `(1, 1, *k)` is applied
            to every channel, one of shape `(C, *k)` has a kernel for each channel. Or a `KernelField`, which varies
            over the frame.
        dimensions: axes of space of `x`: 1, 2 or 3. By default they follow from the axes of the kernel: one means
            signals, five a layer of three dimensions, two to four pictures. A kernel with fewer axes works on each
            plane or line separately.
        padding: `same`, `valid`, `full`, a whole number, or one for each axis that the kernel spans; for a
            transposed layer, the pixels cut off its output.
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
    convolve = partial(_convolve, padding=padding, rule=rule)
    return _plane_by_plane(convolve, canonical, x, dimensions, bias, tone_curve)


def forward_taps(
    x: Tensor,
    kernel: Tensor,
    tap: Tap | str,
    *,
    dimensions: int | None = None,
    padding: PaddingLike = "same",
    boundary: str = "zero",
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    bias: Tensor | None = None,
    dtype: torch.dtype | str | None = None,
) -> Tensor:
    """Compute `y[o, m] = Σ φ(x[i, m + d − p], kernel[o, i, d])` over all input channels i and taps d.

    Args:
        x: shape `(C_in, *size)` or `(B, C_in, *size)`.
        kernel: the weights, as the kernel of `forward`, but not a `KernelField`.
        tap: φ, element by element on tensors that broadcast; or its name in `TAPS`.
        dimensions: as of `forward`.
        padding: as of `forward`.
        boundary: as of `forward`; pixels outside go through φ like all others.
        stride: as of `forward`.
        dilation: as of `forward`.
        bias: added to each output channel, shape `(C_out,)`.
        dtype: precision of the arithmetic; by default float64 for float64 images, else float32.

    Returns:
        Shape `(C_out, *output size)` or `(B, C_out, *output size)`.

    Raises:
        ShapeError: kernel, bias and images do not fit one another.
        UsageError: a tap that fails, that gives no number for each pixel, or that is no function of one pixel.
        MalformedInputError: images or kernels that are not finite, or outputs that are not.
    """
    check_image(x, "the image")
    rule, function = as_rule(boundary), find_tap(tap)
    refuse_unknown(rule)
    precision = pick_dtype(dtype, x, x.device)
    dimensions = check_dimensions(dimensions)
    weights = as_any_kernel(check_single_kernel(kernel), x.device, precision, dimensions)
    steps = LayerOptions(stride=stride, dilation=dilation).over_axes(weights.n_axes)
    of_image = partial(
        convolve_taps, function, padding=padding, boundary=rule, stride=steps.stride, dilation=steps.dilation
    )

    def convolve(kernel: Kernel, x: Tensor) -> Tensor:
        images, taps = kernel.split(x), kernel.taps
        batch, found = images.shape[: kernel.channel_axis], []
        for image in images.reshape(-1, *images.shape[kernel.channel_axis :]):
            check_elementwise(function, image.detach(), taps.detach().flatten(2)[..., 0])
            found.append(of_image(taps, image))
        y = torch.stack(found)
        n_bad = synchronize.as_index((~torch.isfinite(y.detach())).sum())
        if n_bad:
            raise MalformedInputError(
                f"the taps give NaN or infinite values at {n_bad} of {y.numel()} outputs; keep all pixels, also those "
                "that the boundary adds, in the domain of the tap."
            )
        return kernel.join(y.reshape(*batch, *y.shape[1:]))

    return _plane_by_plane(convolve, weights, x, dimensions, bias)


def _plane_by_plane(
    convolve: Callable[[Kernel, Tensor], Tensor],
    kernel: Kernel,
    x: Tensor,
    dimensions: int | None,
    bias: Tensor | None,
    curve: ToneCurve | None = None,
) -> Tensor:
    """Convolve the planes of `x` in light, each channel with its kernel if it has its own, and add the bias."""
    planes, n_axes, axis = Planes.of(x, kernel, dimensions), kernel.n_axes, kernel.channel_axis
    images = (x if planes is None else planes.split(x)).to(kernel.taps.dtype)
    images = images if curve is None else curve.to_light(images, n_axes)
    if kernel.is_per_channel:
        kernel.check_channels(images)
        y = torch.cat([convolve(kernel.of_channel(c), image) for c, image in enumerate(images.split(1, axis))], axis)
    else:
        y = convolve(kernel, images)
    y = y if bias is None else y + as_bias(bias, y, n_axes)
    y = y if curve is None else curve.to_stored(y, n_axes)
    return y if planes is None else planes.join(y)


def refuse_unknown(rule: BoundaryRule) -> None:
    """Refuse, by `UsageError`, a boundary that says nothing about the pixels outside."""
    if rule.is_unknown:
        others = [name for name in BOUNDARIES if not as_rule(name).is_unknown]
        raise UsageError(
            f"boundary {rule.name} does not define the pixels outside, so the convolution is not possible; choose "
            f"{', '.join(others[:-1])} or {others[-1]}, or padding valid."
        )


def _convolve(kernel: Kernel, x: Tensor, padding: PaddingLike, rule: BoundaryRule) -> Tensor:
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
    """Shape a bias to add it to outputs `(*batch, C_out, *size)`; another length raises a `ShapeError`."""
    check_tensor(bias, "the bias")
    n_channels = outputs.shape[-n_axes - 1]
    if bias.shape != (n_channels,):
        raise ShapeError(
            f"a bias must have one number for each output channel, shape ({n_channels},), "
            f"but has shape {tuple(bias.shape)}."
        )
    return bias.to(outputs.device, outputs.dtype).reshape(-1, *[1] * n_axes)


def subtract_bias(y: Tensor, bias: Tensor | None, n_axes: int) -> Tensor:
    """Subtract the bias of each output channel, if there is one, from outputs `(*batch, C_out, *size)`."""
    return y if bias is None else y - as_bias(bias, y, n_axes)


def find_tap(tap: Tap | str) -> Tap:
    """Return the tap of a name, or the function itself; anything else raises a `UsageError`."""
    found: object = TAPS[TAPS.check(tap)] if isinstance(tap, str) else tap
    if not callable(found):
        raise UsageError(f"a tap must be one of {', '.join(TAPS)} or a function (pixel, weight), but is {found!r}.")
    return found


class NoiseKind(StrEnum):
    """How the noise is distributed."""

    GAUSSIAN = "gaussian"
    POISSON = "poisson"


@dataclass(frozen=True)
class Noise:
    """A noise model.

    Attributes:
        kind: the distribution.
        level: for `gaussian` the standard deviation, in the units of the samples; for `poisson` the expected count at
            the brightest sample.
    """

    kind: NoiseKind
    level: float

    @classmethod
    def parse(cls, text: str) -> Noise:
        """Read `gaussian:SIGMA` or `poisson:PEAK`.

        Raises:
            UsageError: the text is neither, or its number is not positive.
        """
        kind, _, number = text.partition(":")
        try:
            noise = cls(NoiseKind(kind), float(number))
        except ValueError:
            raise UsageError(f"noise must be gaussian:SIGMA or poisson:PEAK, but is '{text}'.") from None
        if not 0 < noise.level < float("inf"):
            raise UsageError(f"the level of the noise must be a positive number, but is {noise.level}.")
        return noise

    def kernel_for(self, kernel: Taps, n_axes: int) -> tuple[Taps, tuple[str, ...]]:
        """Return the kernel to blur by before the noise is added, and a note: counts need one without negative taps.

        Small negative taps of a kernel `(*, *k)`, or of a field, with `n_axes` axes of space are replaced by the
        nearest kernel without them.
        """
        taps = kernel.taps if isinstance(kernel, KernelField) else kernel
        share = negative_share(taps, n_axes) if self.kind is NoiseKind.POISSON else 0.0
        if not LEAST_NEGATIVE < share <= MOST_NEGATIVE:
            return kernel, ()
        nearest = without_negative_taps(taps, n_axes)
        note = (
            "counts cannot be negative, so they were blurred with the nearest kernel without negative taps; the "
            f"negative taps add up to {format_percent(share)} of the others"
        )
        return (replace(kernel, taps=nearest) if isinstance(kernel, KernelField) else nearest), (note,)

    def add(self, image: Tensor, seed: int) -> Tensor:
        """Add the noise to an image of any shape.

        It is drawn on the CPU, so that a seed gives the same noise on every device.

        Raises:
            UsageError: Poisson noise for an image with negative samples, or with none above zero.
        """
        generator = torch.Generator().manual_seed(seed)
        if self.kind is NoiseKind.GAUSSIAN:
            noise = torch.randn(image.shape, generator=generator, dtype=image.dtype)
            return image + self.level * noise.to(image.device)
        low, high = float(image.min()), float(image.max())
        if low < -1e-6 * max(high, 0.0) or high <= 0:
            raise UsageError(
                f"Poisson noise needs samples from zero upwards, but they go from {low:g} to {high:g}; "
                "use gaussian noise or a kernel without negative taps."
            )
        counts = torch.poisson((image.cpu() * (self.level / high)).clamp_min(0), generator=generator)
        return (counts * (high / self.level)).to(image.device)
