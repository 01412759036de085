"""Saturated samples: found as lower bounds, and filled in by a first estimate.

Saturation leaves creases in the data that no blur makes: they look like noise, and become rings.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from deconv_cli.diagnostics.lambda_choice import choose_lambda
from deconv_cli.diagnostics.periodic_extension import PeriodicExtension
from deconv_cli.diagnostics.stored_samples import LEAST_SHARE, find_clipped
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import crop
from deconv_cli.regularizers import spaced_penalty
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.clipped import solve_clipped
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solution import StoppingRule
from deconv_cli.tone_curve import ToneCurve, white_of
from deconv_cli.vocabulary import Size
from deconv_cli.workflows.resolve_settings import ResolvedInput

TILE = 256
"""Samples along each axis that are filled at once."""
N_KERNELS = 2
"""Kernels around a tile that it is estimated with."""
LAMBDA, PENALTY = 1e-2, "gradient"
RULE = StoppingRule(tolerance=1e-4, max_iterations=10)
"""How tiles are estimated. Set on a bar of light in a photograph of scikit-image: penalty identity left it at white,
and more iterations made it a little brighter for as much more time."""


def find_bounds(data: Tensor, kernel: Kernel, resolution: ResolvedInput) -> Tensor | None:
    """Find full samples, which are lower bounds, if the estimate can use bounds; `None` if there are none."""
    if resolution.ceiling is None or resolution.has_bounds is False:
        return None
    if not kernel.layer.is_plain or not resolution.settings.takes_bounds:
        return None
    if torch.is_grad_enabled() and (data.requires_grad or kernel.taps.requires_grad):
        return None
    least_share = 0.0 if resolution.has_bounds else LEAST_SHARE
    return find_clipped(data, resolution.ceiling, kernel.size, least_share)


def with_ceiling(resolution: ResolvedInput, y: Tensor, n_axes: int) -> ResolvedInput:
    """Set the value of a full sample; under white noise full samples are measurements."""
    if resolution.settings.noise in (None, "white"):
        return replace(resolution, ceiling=None)
    ceiling = ceiling_of(y, resolution.tone_curve, resolution.sample_type, n_axes)
    return replace(resolution, ceiling=ceiling)


def ceiling_of(y: Tensor, curve: ToneCurve | None, sample_type: str | None, n_axes: int) -> float | None:
    """Return the largest value that a sample can have, in light if light is restored."""
    ceiling = white_of(y, sample_type)
    if ceiling is None or curve is None:
        return ceiling
    white = torch.full((y.shape[-n_axes - 1], *[1] * n_axes), ceiling, dtype=torch.float64, device=y.device)
    return synchronize.as_number(curve.to_light(white, n_axes).min())


def fill_clipped(
    y: Tensor, kernel: Kernel, settings: ResolvedSettings, is_clipped: Tensor | None
) -> tuple[Tensor, float]:
    """Replace full samples that an estimate exceeds, with λ chosen as for white noise.

    The data `(*batch, C_out, *size)` have no bias and no graph; `is_clipped` has their shape.

    Returns:
        The data, filled in their middle; and the share of the middle that did not change.
    """
    if is_clipped is None or kernel.field is not None:
        return y, 1.0
    extension = PeriodicExtension(
        kernel,
        tuple(y.shape[-kernel.n_axes :]),
        boundary="unknown",
        penalty=spaced_penalty(settings.penalty, settings.spacing),
        max_memory=settings.max_memory,
    )
    lam = choose_lambda(extension, y, is_clipped).lam
    return extension.fill(y, lam, is_clipped)


def fill_tiles(y: Tensor, kernel: Kernel, is_clipped: Tensor, origin: Size = ()) -> Tensor:
    """Replace saturated samples of data `(*batch, C_out, H, W)` that a quadratic estimate exceeds, tile by tile.

    Tiles without saturated samples cost nothing. A block at `origin` of a picture has the tiles of the picture.
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
