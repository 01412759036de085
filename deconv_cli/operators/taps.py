"""The tap of a convolution, φ(pixel, weight), as a function that somebody else may have written."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from deconv_cli.errors import UsageError

Tap: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""φ(pixel, weight), element by element on tensors that broadcast."""

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
