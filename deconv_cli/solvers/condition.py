"""The condition number of AᴴA + μLᴴL, which says how many iterations conjugate gradients need.

Where an image or its outputs can be extended by zeros so that the convolution goes around a torus, A is that torus'
operator between two coordinate subspaces, and its singular values lie between the extreme ones of the symbol.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.circulant import to_float64, torus_symbol
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.spectrum import affordable_grid, single_threaded, singular_values
from deconv_cli.regularizers import PenaltyLike, find_penalty

# An estimate is good enough on few frequencies: more, or wider blocks, would take as long as solving.
MAX_FREQUENCIES = 2**12
MAX_BLOCK_OPERATIONS = 1e7


def condition_number(operator: Convolution, lam: float, penalty: PenaltyLike) -> float:
    """Bound the condition number of AᴴA + μLᴴL on the range of Aᴴ, as far as a grid of frequencies shows it.

    Args:
        operator: A.
        lam: λ.
        penalty: which L.

    Returns:
        Where the border may lose what the symbol does not, (1 + λ)/λ at least; infinite where nothing is known. That
        copies of pixels add to their gain is left out.
    """
    taps, geometry = to_float64(operator.kernel), operator.geometry
    torus = geometry.image_size if operator.boundary.is_periodic else geometry.extended_size
    grid = affordable_grid(torus, taps.shape[:2], MAX_FREQUENCIES, MAX_BLOCK_OPERATIONS)
    symbol = torus_symbol(taps, grid, geometry.pads.before)
    gains = singular_values(symbol).square()
    largest, least = gains.amax(-1), _least_gain(operator, symbol, gains.amin(-1))
    penalized = lam * largest.max() * find_penalty(penalty).symbol(grid, taps.dtype, taps.device)
    n_overlaps, floor = _overlap(operator), 0.0
    if least is None:
        least, floor = gains.amin(-1), n_overlaps * (1 + lam) / lam if lam > 0 else math.inf
    lowest = synchronize.as_number((least + penalized).min())
    highest = n_overlaps * synchronize.as_number((largest + penalized).max())
    return max(floor, highest / lowest) if lowest > 0 else math.inf


def plain_iterations(condition: float, tolerance: float) -> float:
    """Bound the iterations of conjugate gradients that bring an error below a tolerance.

    Saad, Iterative Methods for Sparse Linear Systems, 2003, equation 6.128: 2((√κ − 1)/(√κ + 1))ⁿ.
    """
    return max(1.0, 0.5 * math.sqrt(condition) * math.log(2 / tolerance))


def _least_gain(operator: Convolution, symbol: Tensor, least: Tensor) -> Tensor | None:
    """Bound the squares of A's singular values other than zero from below; `None` where the symbol bounds nothing.

    Args:
        operator: A.
        symbol: shape `(*plane, C_out, C_in)`.
        least: the squares of the symbol's smallest singular values, shape `(*plane,)`.

    Returns:
        Shape `(*plane,)`, or a single number.
    """
    boundary, geometry, pads = operator.boundary, operator.geometry, operator.geometry.pads
    n_outputs, n_inputs = operator.kernel.shape[:2]
    n_more = [o - i for o, i in zip(operator.output_shape[1:], operator.input_shape[1:], strict=True)]
    is_tall, is_wide = n_outputs >= n_inputs, n_outputs <= n_inputs
    if boundary.is_unknown or not any(pads.total):
        return least if is_wide else None  # some outputs of a torus of the image's size
    if boundary.is_periodic:
        return least if (is_tall and min(n_more) >= 0) or (is_wide and max(n_more) <= 0) else None
    if not boundary.is_zero:
        return None
    sides = zip(geometry.kernel_size, pads.before, pads.after, strict=True)
    if all(min(before, after) >= k - 1 for k, before, after in sides):
        return least if is_tall else None  # all outputs of images that are zero on a part of the torus
    return _least_real_part(symbol) if is_tall and is_wide and not any(n_more) else None


def _least_real_part(symbol: Tensor) -> Tensor | None:
    """Bound the gain under zeros by that of the Hermitian part, if it is definite: ‖Ax‖‖x‖ ≥ |⟨x, Ax⟩|."""
    with single_threaded(symbol.device):
        values = torch.linalg.eigvalsh((symbol + symbol.mH) / 2)
    least, largest = values.min(), values.max()
    return (
        torch.minimum(least.abs(), largest.abs()).square() if synchronize.holds_anywhere(least * largest > 0) else None
    )


def _overlap(operator: Convolution) -> int:
    """Count how many outputs may be the same one, where an image that repeats itself has more outputs than pixels."""
    if not operator.boundary.is_periodic:
        return 1
    sizes = zip(operator.output_shape[1:], operator.input_shape[1:], strict=True)
    return math.prod(-(-n_outputs // n_pixels) for n_outputs, n_pixels in sizes)
