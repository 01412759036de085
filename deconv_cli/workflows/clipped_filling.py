"""Data whose clipped samples are replaced by what a first estimate predicts.

Where light is cut off the data have creases, which no blur makes: they look like noise, and become rings.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from deconv_cli.diagnostics.continuation import Continuation
from deconv_cli.diagnostics.lambda_choice import choose_lambda
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import crop
from deconv_cli.regularizers import spaced_penalty
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.clipped import solve_clipped
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solution import StoppingRule
from deconv_cli.vocabulary import Size

TILE = 256
"""Samples along each axis that are filled at once."""
N_KERNELS = 2
"""Kernels around a tile that it is estimated with."""
LAMBDA, PENALTY = 1e-2, "gradient"
RULE = StoppingRule(tolerance=1e-4, max_iterations=10)
"""How tiles are estimated. Set on a bar of light in a photograph of scikit-image: penalty identity left it at white,
and more iterations made it a little brighter for as much more time."""


def fill_clipped(
    y: Tensor, kernel: Kernel, settings: ResolvedSettings, is_clipped: Tensor | None
) -> tuple[Tensor, float]:
    """Replace clipped samples that an estimate exceeds, its λ chosen as for white noise.

    Args:
        y: shape `(C_out, *size)` or `(B, C_out, *size)`, without the bias, of the kernel's precision, without a graph.
        kernel: what made them.
        settings: what was resolved.
        is_clipped: which samples are lower bounds, of the shape of `y`; none where it is left out.

    Returns:
        Data of the shape of `y`, filled in the middle, which is looked at; and the part of that that is as it was.
    """
    if is_clipped is None or kernel.field is not None:
        return y, 1.0
    continuation = Continuation(
        kernel,
        tuple(y.shape[-kernel.n_axes :]),
        boundary="unknown",
        penalty=spaced_penalty(settings.penalty, settings.spacing),
        max_memory=settings.max_memory,
    )
    lam = choose_lambda(continuation, y, is_clipped).lam
    return continuation.fill(y, lam, is_clipped)


def fill_tiles(y: Tensor, kernel: Kernel, is_clipped: Tensor, origin: Size = ()) -> Tensor:
    """Replace clipped samples that a quadratic estimate exceeds, tile by tile: where none are clipped it costs nothing.

    Args:
        y: shape `(C_out, H, W)` or `(B, C_out, H, W)`, without the bias, of the kernel's precision.
        kernel: what made them, of two axes.
        is_clipped: which samples are lower bounds, of the shape of `y`.
        origin: of a block, its place in the picture: all blocks have the tiles of that.

    Returns:
        Data of the shape of `y`.
    """
    data, bounds = (kernel.split(part, are_outputs=True) for part in (y, is_clipped.to(y.dtype)))
    size, margins = data.shape[-2:], [N_KERNELS * n_taps for n_taps in kernel.size]
    sides = tuple(min(n, TILE + 2 * margin) for n, margin in zip(size, margins, strict=True))
    geometry = kernel.geometry_of_output(sides, "valid", None)
    operator = kernel.detached().convolution(geometry, "unknown")
    problem, filled = TikhonovProblem(operator, LAMBDA, penalty=PENALTY), data.clone()
    places = zip(origin or (0, 0), size, strict=True)
    for tile in product(*(range(-(place % TILE), n, TILE) for place, n in places)):
        corner = tuple(max(at, 0) for at in tile)
        extent = tuple(min(at + TILE, n) - first for at, first, n in zip(tile, corner, size, strict=True))
        if not synchronize.holds_anywhere(crop(bounds, corner, extent) > 0):
            continue
        axes = zip(tile, margins, size, sides, strict=True)
        start = tuple(max(0, min(at - margin, n - side)) for at, margin, n, side in axes)
        part, is_bound = crop(data, start, sides), crop(bounds, start, sides) > 0
        predicted = operator.forward(solve_clipped(problem, part, is_bound, RULE).value)
        found = torch.where(is_bound, part.maximum(predicted), part)
        inner = tuple(at - first for at, first in zip(corner, start, strict=True))
        crop(filled, corner, extent).copy_(crop(found, inner, extent))
    return kernel.join(filled)
