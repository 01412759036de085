"""A convolution with taps φ(pixel, weight) in the place of pixel · weight, under any boundary, and its linearization.

It is not linear, so that it is no `LinearOperator`; its derivative at an image is one: a convolution whose taps, the
slopes ∂φ/∂pixel, differ from pixel to pixel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from types import EllipsisType
from typing import TypeAlias

import torch
from torch import Tensor

from deconv_cli.errors import UsageError
from deconv_cli.operators import synchronize
from deconv_cli.operators.boundaries.rule import BoundaryRule
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.geometry import Padding
from deconv_cli.operators.linear_operator import LinearOperator, Shape
from deconv_cli.vocabulary import Size

Tap: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""φ(pixel, weight), a function of the user or of this package, element by element on tensors that broadcast."""

ADVICE = (
    "it takes tensors (pixel, weight) that broadcast, and gives a tensor of their common shape by torch's functions"
)
_PROBE_PARTS = 2


def name_of(tap: Tap) -> str:
    """Give the name by which a tap is called in messages."""
    return getattr(tap, "__name__", type(tap).__name__)


def evaluate(tap: Tap, pixels: Tensor, weights: Tensor) -> Tensor:
    """Compute φ for all pairs of channels.

    Args:
        tap: φ.
        pixels: shape `(C_in, *size)`.
        weights: shape `(C_out, C_in)`.

    Returns:
        Shape `(C_out, C_in, *size)`.

    Raises:
        UsageError: the tap fails, or gives no floating-point number for each pair.
    """
    return _values(tap, pixels.expand(weights.shape[0], *pixels.shape), weights)


def slopes(tap: Tap, pixels: Tensor, weights: Tensor) -> Tensor:
    """Compute ∂φ/∂pixel; shapes as of `evaluate`.

    Raises:
        UsageError: the tap fails, or autograd cannot follow it.
    """
    with torch.enable_grad():
        # A copy of each pixel for each output channel: the gradient of the sum is then that of each element.
        spread = pixels.detach().expand(weights.shape[0], *pixels.shape).clone().requires_grad_()
        values = _values(tap, spread, weights.detach())
        if not values.requires_grad:
            raise UsageError(
                f"the tap '{name_of(tap)}' has no gradient, so that it cannot be inverted: its result does not depend "
                "on the pixel by torch's functions; leave out detach(), item(), NumPy and torch.no_grad()."
            )
        (gradient,) = torch.autograd.grad(values.sum(), spread)
    return gradient


def _values(tap: Tap, pixels: Tensor, weights: Tensor) -> Tensor:
    shaped = weights.reshape(*weights.shape, *[1] * (pixels.ndim - 2))
    try:
        values: object = tap(pixels, shaped)
    except Exception as error:
        raise UsageError(
            f"the tap '{name_of(tap)}' fails ({type(error).__name__}: {first_line(error)}); {ADVICE}."
        ) from error
    if not isinstance(values, Tensor) or values.dtype != pixels.dtype:
        kind = str(values.dtype) if isinstance(values, Tensor) else type(values).__name__
        raise UsageError(
            f"the tap '{name_of(tap)}' should give a tensor of {pixels.dtype}, but gives {kind}; {ADVICE}."
        )
    if values.shape != pixels.shape:
        raise UsageError(
            f"the tap '{name_of(tap)}' should give the shape {tuple(pixels.shape)} of its arguments, but gives "
            f"{tuple(values.shape)}; {ADVICE}."
        )
    return values


def first_line(error: Exception) -> str:
    """Give what an error says, as far as it fits into a sentence."""
    return str(error).partition("\n")[0].partition(". ")[0][:160].rstrip(".")


def check_elementwise(tap: Tap, pixels: Tensor, weights: Tensor) -> None:
    """Refuse a tap that looks at more than one pixel and one weight at a time; shapes as of `evaluate`.

    Raises:
        UsageError: what it gives for some pixels changes when the others are left out, or when it is called again.
    """
    whole = evaluate(tap, pixels, weights)
    part = max(1, pixels.shape[-1] // _PROBE_PARTS)
    alone = evaluate(tap, pixels[..., :part], weights)
    if not torch.allclose(whole[..., :part], alone, equal_nan=True):
        raise UsageError(
            f"the tap '{name_of(tap)}' should be a function of one pixel and one weight, but its value for some pixels "
            "depends on the others, or on chance; leave out means, sorting and random numbers."
        )


def product_of_the_others(taps: Tensor) -> Tensor:
    """Multiply, for each tap, all others along the last axis; by running products, since a tap may be zero."""
    ones = torch.ones_like(taps[..., :1])
    before = torch.cat([ones, taps[..., :-1]], -1).cumprod(-1)
    after = torch.cat([ones, taps[..., 1:].flip(-1)], -1).cumprod(-1).flip(-1)
    return before * after


Window: TypeAlias = "tuple[EllipsisType | slice, ...]"
"""The pixels that one tap of the kernel meets, as an index: the axes of space are the last."""

REDUCTIONS = ("sum", "product")


class TapConvolution:
    """`y[o, m] = reduce over (i, d) of φ(x[i, m·stride + d·dilation], weight[o, i, d])`, x with its border.

    Args:
        tap: φ.
        kernel: the weights, shape `(C_out, C_in, *k)`.
        image_size: pixels of the image x.
        padding: as torch words it, `same`, `valid`, `full` or whole numbers.
        boundary: a rule or its name.
        reduction: `sum` or `product` over the receptive field.
        stride: steps of the receptive field along each axis, in pixels; 1 if not given.
        dilation: distances of neighboring taps along each axis, in pixels; 1 if not given.

    Attributes:
        input_shape: `(C_in, *size)`, of the image; of the image with its border where the boundary is unknown.
        output_shape: `(C_out, *output size)`.
        geometry: the sizes without the stride.
        boundary: the rule.
        crop_to_frame: cuts the frame out of an estimate; gives the estimate itself, unless the boundary is unknown.

    Raises:
        ShapeError: the kernel does not fit the image, or reaches further than the boundary can supply.
        UsageError: another reduction.
    """

    def __init__(
        self,
        tap: Tap,
        kernel: Tensor,
        image_size: Size,
        *,
        padding: Padding = "same",
        boundary: str | BoundaryRule = "zero",
        reduction: str = "sum",
        stride: Size | None = None,
        dilation: Size | None = None,
    ) -> None:
        if reduction not in REDUCTIONS:
            raise UsageError(f"reduction must be {' or '.join(REDUCTIONS)}, but is '{reduction}'.")
        n_axes = kernel.ndim - 2
        self.tap, self.kernel, self.reduction = tap, kernel, reduction
        self.stride, self.dilation = stride or (1,) * n_axes, dilation or (1,) * n_axes
        plain = Convolution(spread_out(kernel, self.dilation), image_size, padding=padding, boundary=boundary)
        self.geometry, self.boundary, self.crop_to_frame = plain.geometry, plain.boundary, plain.crop_to_frame
        self.input_shape: Shape = plain.input_shape
        sizes = zip(self.geometry.output_size, self.stride, strict=True)
        self.output_shape: Shape = (kernel.shape[0], *(math.ceil(n / step) for n, step in sizes))
        self.extension: LinearOperator = plain.extension

    def windows(self) -> Iterator[tuple[Tensor, Window]]:
        """Go through the taps of the kernel: the weights `(C_out, C_in)` of each, and the pixels that it meets."""
        flat = self.kernel.flatten(2).unbind(2)
        positions = itertools.product(*map(range, self.kernel.shape[2:]))
        for weights, at in zip(flat, positions, strict=True):
            starts = [d * step for d, step in zip(at, self.dilation, strict=True)]
            sizes = zip(starts, self.output_shape[1:], self.stride, strict=True)
            yield weights, (..., *(slice(a, a + (n - 1) * step + 1, step) for a, n, step in sizes))

    def forward(self, x: Tensor) -> Tensor:
        """Apply to an image of shape `(C_in, *size)`; NaN and infinite values of the tap are passed on.

        Raises:
            UsageError: the tap fails, or gives something else than a number for each pixel.
        """
        wide = self.extension.forward(x)
        total: Tensor | None = None
        for weights, window in self.windows():
            values = evaluate(self.tap, wide[window], weights)
            values = values.sum(1) if self.reduction == "sum" else values.prod(1)
            total = values if total is None else total + values if self.reduction == "sum" else total * values
        assert total is not None
        return total

    def linearize(self, x: Tensor) -> TapLinearization:
        """Give the derivative at an image of shape `(C_in, *size)`.

        Raises:
            UsageError: the tap has no slopes that autograd finds.
        """
        wide = self.extension.forward(x)
        found = [slopes(self.tap, wide[window], weights) for weights, window in self.windows()]
        if self.reduction == "product":
            values = [evaluate(self.tap, wide[window], weights) for weights, window in self.windows()]
            others = product_of_the_others(torch.stack(values, -1).movedim(1, -2).flatten(-2))
            others = others.unflatten(-1, (self.kernel.shape[1], len(values))).movedim(-2, 1)
            found = [slope * others[..., i] for i, slope in enumerate(found)]
        return TapLinearization(self, found)

    def slopes_at(self, level: float) -> Tensor:
        """Give the convolution that this is near a constant image: taps `(C_out, C_in, *extent)`, zeros between."""
        extent = self.geometry.kernel_size
        field = TapConvolution(
            self.tap, self.kernel, extent, padding="valid", reduction=self.reduction, dilation=self.dilation
        )
        found = field.linearize(self.kernel.new_full(field.input_shape, level)).slopes
        stacked = torch.stack([slope.flatten(2)[..., 0] for slope in found], -1)
        return spread_out(stacked.reshape(self.kernel.shape), self.dilation)


class TapLinearization(LinearOperator):
    """The derivative of a `TapConvolution` at an image: a convolution with taps of its own at every pixel.

    Args:
        convolution: what it is the derivative of.
        slopes: ∂φ/∂pixel of every tap of the kernel, each of shape `(C_out, C_in, *output size)`; for products times
            all other factors.
    """

    def __init__(self, convolution: TapConvolution, slopes: list[Tensor]) -> None:
        self.input_shape, self.output_shape = convolution.input_shape, convolution.output_shape
        self.dtype, self.device = convolution.kernel.dtype, convolution.kernel.device
        self.slopes = slopes
        self._kernel_shape = convolution.kernel.shape
        self._extension = convolution.extension
        self._windows = [window for _, window in convolution.windows()]

    def forward(self, x: Tensor) -> Tensor:
        """Apply to `x` of shape `(*batch, C_in, *size)`."""
        wide, channels = self._extension.forward(x), -len(self.input_shape)
        total = x.new_zeros(*x.shape[:channels], *self.output_shape)
        for slope, window in zip(self.slopes, self._windows, strict=True):
            total = total + (slope * wide[window].unsqueeze(channels - 1)).sum(channels)
        return total

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the transpose to `y` of shape `(*batch, C_out, *output size)`."""
        channels = -len(self.output_shape)
        wide = y.new_zeros(*y.shape[:channels], *self._extension.output_shape)
        for slope, window in zip(self.slopes, self._windows, strict=True):
            wide[window] += (slope * y.unsqueeze(channels)).sum(channels - 1)
        return self._extension.adjoint(wide)

    def mean_slopes(self) -> tuple[Tensor, float]:
        """Average the slopes over all pixels.

        Returns:
            Their means, shape `(C_out, C_in, *k)`, and how far the slopes are from them: the norm of the difference in
            parts of that of the slopes.
        """
        means = torch.stack([slope.flatten(2).mean(-1) for slope in self.slopes], -1)
        of_means = means.square().sum() * math.prod(self.output_shape[1:])
        of_slopes = torch.stack([slope.square().sum() for slope in self.slopes]).sum()
        spread = ((of_slopes - of_means) / of_slopes).clamp_min(0).sqrt()
        return means.reshape(self._kernel_shape), synchronize.as_number(spread)


def spread_out(kernel: Tensor, dilation: Size) -> Tensor:
    """Put the zeros of a dilation between the taps of a kernel `(C_out, C_in, *k)`."""
    if all(step == 1 for step in dilation):
        return kernel
    extent = [(k - 1) * step + 1 for k, step in zip(kernel.shape[2:], dilation, strict=True)]
    wide = kernel.new_zeros(*kernel.shape[:2], *extent)
    window: Window = (..., *(slice(None, None, step) for step in dilation))
    wide[window] = kernel
    return wide
