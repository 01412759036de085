"""Measure a straight line in each pixel."""

from __future__ import annotations

import math

import torch

_ROUNDING = 1e-9
"""A piece of the line shorter than this many pixels is a corner that it passes through."""


def trace_line(taps: torch.Tensor, start: torch.Tensor, end: torch.Tensor, amount: float) -> None:
    """Add an amount to the pixels of a line, to each by the length of the line within it.

    Args:
        taps: shape `(2n + 1, 2m + 1)`, float64; the line lies within.
        start: shape `(2,)`, row and column in pixels from the middle of the central one.
        end: likewise; a line without length lies in one pixel.
        amount: of the whole line.
    """
    step = end - start
    length = math.hypot(*step.tolist())
    cuts = [torch.tensor([0.0, 1.0], dtype=torch.float64)]
    for at, along, size in zip(start.tolist(), step.tolist(), taps.shape, strict=True):
        n = size // 2
        edges = torch.arange(-n, n, dtype=torch.float64) + 0.5
        crossings = (edges - at) / along if along else edges[:0]
        cuts.append(crossings[(crossings > 0) & (crossings < 1)])
    places = torch.cat(cuts).sort().values
    shares, middles = places.diff(), (places[1:] + places[:-1]) / 2
    kept = shares * length > _ROUNDING if length > _ROUNDING else torch.arange(len(shares)) == 0
    shares = shares[kept] if length > _ROUNDING else shares.new_ones(1)
    at = (start + middles[kept, None] * step).round().long()
    # A line along the outermost edge lies in the pixel within.
    rows, columns = ((at[:, axis] + n // 2).clamp(0, n - 1) for axis, n in enumerate(taps.shape))
    taps.index_put_((rows, columns), amount * shares, accumulate=True)
