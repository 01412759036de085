"""A convolution with taps φ(pixel, weight) instead of pixel · weight, under any boundary."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from deconv_cli.errors import UsageError
from deconv_cli.layer_options import LayerOptions
from deconv_cli.operators.boundary_rules import BoundaryRule
from deconv_cli.operators.convolution import extension_of
from deconv_cli.operators.geometry import Geometry, Padding
from deconv_cli.vocabulary import Size

Tap: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""φ(pixel, weight), a function of the user or of this package, element by element on tensors that broadcast."""

ADVICE = (
    "it must take tensors (pixel, weight) that broadcast, and return a tensor of their common shape, with torch's "
    "functions only"
)
_PROBE_PARTS = 2


def name_of(tap: Tap) -> str:
    """Give the name by which a tap is called in messages."""
    return getattr(tap, "__name__", type(tap).__name__)


def evaluate(tap: Tap, pixels: Tensor, weights: Tensor) -> Tensor:
    """Compute φ for all pairs of channels: shape `(C_out, C_in, *size)`; a tap that fails is a `UsageError`.

    The pixels have the shape `(C_in, *size)`, the weights `(C_out, C_in)`.
    """
    pixels = pixels.expand(weights.shape[0], *pixels.shape)
    shaped = weights.reshape(*weights.shape, *[1] * (pixels.ndim - 2))
    try:
        values: object = tap(pixels, shaped)
    except Exception as error:
        raise UsageError(
            f"the tap '{name_of(tap)}' fails ({type(error).__name__}: “{first_line(error)}”); {ADVICE}."
        ) from error
    if not isinstance(values, Tensor) or values.dtype != pixels.dtype:
        kind = str(values.dtype) if isinstance(values, Tensor) else type(values).__name__
        raise UsageError(
            f"the tap '{name_of(tap)}' must return a tensor of {pixels.dtype}, but returns {kind}; {ADVICE}."
        )
    if values.shape != pixels.shape:
        raise UsageError(
            f"the tap '{name_of(tap)}' must return the shape {tuple(pixels.shape)} of its arguments, but returns "
            f"{tuple(values.shape)}; {ADVICE}."
        )
    return values


def first_line(error: Exception) -> str:
    """Give what an error says, as far as it fits into a sentence."""
    return str(error).partition("\n")[0].partition(". ")[0][:160].rstrip(".")


def check_elementwise(tap: Tap, pixels: Tensor, weights: Tensor) -> None:
    """Refuse, by `UsageError`, a tap that depends on more than one pixel and one weight; shapes as in `evaluate`."""
    whole = evaluate(tap, pixels, weights)
    part = max(1, pixels.shape[-1] // _PROBE_PARTS)
    alone = evaluate(tap, pixels[..., :part], weights)
    if not torch.allclose(whole[..., :part], alone, equal_nan=True):
        raise UsageError(
            f"the tap '{name_of(tap)}' should be a function of one pixel and one weight, but its values depend on "
            "other pixels, or on chance; leave out means, sorting and random numbers."
        )


def convolve_taps(
    tap: Tap, kernel: Tensor, x: Tensor, *, padding: Padding, boundary: BoundaryRule, stride: Size, dilation: Size
) -> Tensor:
    """Compute `y[o, m] = Σ φ(x[i, m·stride + d·dilation], kernel[o, i, d])` over all i and d, x with its border.

    x has the shape `(C_in, *size)`, the kernel `(C_out, C_in, *k)`, the result `(C_out, *output size)`; stride and
    dilation are in pixels along each axis. NaN and infinite values of the tap are passed on.

    Raises:
        ShapeError: the kernel does not fit the image, or reaches further than the boundary can supply.
        UsageError: the tap fails, or gives something else than a number for each pixel.
    """
    options = LayerOptions(stride=stride, dilation=dilation)
    geometry = Geometry.of_image(tuple(x.shape[1:]), tuple(kernel.shape[2:]), padding, options)
    wide, size = extension_of(geometry, len(x), boundary).forward(x), geometry.output_size
    y = wide.new_zeros(kernel.shape[0], *size)
    positions = itertools.product(*map(range, kernel.shape[2:]))
    for weights, at in zip(kernel.flatten(2).unbind(2), positions, strict=True):
        starts = [d * step for d, step in zip(at, dilation, strict=True)]
        ranges = zip(starts, size, stride, strict=True)
        window = (slice(None), *(slice(start, start + (n - 1) * step + 1, step) for start, n, step in ranges))
        y = y + evaluate(tap, wide[window], weights).sum(1)
    return y
