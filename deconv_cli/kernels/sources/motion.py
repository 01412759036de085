"""`motion:LENGTH@ANGLE`: a uniform motion along a straight line, by the exact length of the line in each pixel."""

from __future__ import annotations

import math

import torch

from deconv_cli.kernels.sources.kernel_source import (
    BlurFamily,
    KernelSource,
    Numbers,
    geometric,
    pixels_reached,
    unit_sum,
)

_ROUNDING = 1e-9
"""A piece of the line shorter than this many pixels is a corner that it passes through."""


def motion_kernel(length: float, angle: float) -> torch.Tensor:
    """Measure a centered line in each pixel.

    Args:
        length: of the line, in pixels.
        angle: of the line, in degrees, counterclockwise from the horizontal as the picture is seen.

    Returns:
        Shape `(kH, kW)`, both odd, float64, sum 1.

    Raises:
        UsageError: the length is not positive, or too large.
    """
    half = length / 2
    pixels_reached(half, "LENGTH")
    # Rows count downwards.
    steps = (-math.sin(math.radians(angle)), math.cos(math.radians(angle)))
    reach = [pixels_reached(max(half * abs(step), _ROUNDING), "LENGTH") for step in steps]
    cuts = torch.cat([_edge_crossings(step, n) for step, n in zip(steps, reach, strict=True)])
    cuts = torch.cat([cuts[cuts < half], torch.tensor([0.0, half], dtype=torch.float64)]).sort().values
    pieces, middles = cuts.diff(), (cuts[1:] + cuts[:-1]) / 2
    is_piece = pieces > _ROUNDING
    rows, columns = ((middles[is_piece] * step).round().long() + n for step, n in zip(steps, reach, strict=True))
    taps = torch.zeros(2 * reach[0] + 1, 2 * reach[1] + 1, dtype=torch.float64)
    taps.index_put_((rows, columns), pieces[is_piece], accumulate=True)
    # The other half of the line.
    return unit_sum(taps + taps.flip((0, 1)))


def _edge_crossings(step: float, n_pixels: int) -> torch.Tensor:
    """Give the distances from the center at which the line crosses the edges of pixels along an axis."""
    edges = torch.arange(n_pixels, dtype=torch.float64) + 0.5
    return edges / abs(step) if n_pixels else edges


def _starts(reach: float) -> list[Numbers]:
    lengths = geometric(3.0, 2 * reach, 1.15)
    return [(length, 180 * i / n) for length in lengths for n in [_n_angles(length)] for i in range(n)]


def _n_angles(length: float) -> int:
    """Count the angles that a line of this length tells apart by a pixel or two at its ends."""
    return min(max(round(length), 8), 36)


MOTION = KernelSource(
    ("LENGTH", "ANGLE"),
    motion_kernel,
    BlurFamily(lambda reach, _: _starts(reach), lambda n: (0.15, 180 / _n_angles(n[0])), log_penalty=15.0),
)
