"""Measure a straight line in each pixel."""

from __future__ import annotations

import math

import torch

_ROUNDING = 1e-9
"""A piece of the line shorter than this many pixels is a corner that it passes through."""


def trace_line(start: torch.Tensor, end: torch.Tensor, reach: list[int]) -> torch.Tensor:
    """Give the length of a line within each pixel, or 1 in the pixel of a line without length.

    Args:
        start: shape `(2,)`, row and column in pixels from the middle of the central one.
        end: likewise.
        reach: pixels beside the central one along each axis; the line lies within.

    Returns:
        Shape `(2n + 1, 2m + 1)`, float64.
    """
    step = end - start
    length = math.hypot(*step.tolist())
    cuts = [torch.tensor([0.0, 1.0], dtype=torch.float64)]
    for at, along, n in zip(start.tolist(), step.tolist(), reach, strict=True):
        edges = torch.arange(-n, n, dtype=torch.float64) + 0.5
        crossings = (edges - at) / along if along else edges[:0]
        cuts.append(crossings[(crossings > 0) & (crossings < 1)])
    places = torch.cat(cuts).sort().values
    pieces, middles = places.diff() * length, (places[1:] + places[:-1]) / 2
    if length <= _ROUNDING:
        pieces, middles = pieces.new_ones(1), middles[:1]
    kept = pieces > _ROUNDING
    at = (start + middles[kept, None] * step).round().long()
    # A line along the outermost edge lies in the pixel within.
    rows, columns = ((at[:, axis] + n).clamp(0, 2 * n) for axis, n in enumerate(reach))
    taps = torch.zeros([2 * n + 1 for n in reach], dtype=torch.float64)
    return taps.index_put_((rows, columns), pieces[kept], accumulate=True)
