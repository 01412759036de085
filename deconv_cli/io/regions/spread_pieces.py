"""Pieces that are spread over a large array, so that they stand for all of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from deconv_cli.io.regions.region_source import RegionSource
from deconv_cli.io.samples import as_real_tensor

N_PIECES = 64
MAX_SAMPLES = 2**13
"""Pieces that are looked at, and samples of each at most."""


def cube_sides(size: Sequence[int], n_samples: int) -> tuple[int, ...]:
    """Give the sides of the piece of a frame that is as near to a cube as it can be, of so many samples at most."""
    sides, left = dict.fromkeys(range(len(size)), 1), float(n_samples)
    for i, axis in enumerate(sorted(sides, key=lambda axis: size[axis])):
        sides[axis] = max(1, min(size[axis], int(left ** (1 / (len(size) - i)))))
        left /= sides[axis]
    return tuple(sides[axis] for axis in range(len(size)))


def spread_place(lengths: Sequence[int], number: int) -> tuple[int, ...]:
    """Give one of the places: a low-discrepancy sequence in all axes, so that no two lie in one row or one page."""
    # Roberts, The unreasonable effectiveness of quasirandom sequences, 2018: powers of the root of x^(d+1) = x + 1.
    root = 2.0
    for _ in range(40):
        root = (1 + root) ** (1 / (len(lengths) + 1))
    shares = [math.modf(0.5 + number * root ** -(axis + 1))[0] for axis in range(len(lengths))]
    return tuple(min(int(share * n), n - 1) for share, n in zip(shares, lengths, strict=True))


def read_spread(source: RegionSource) -> torch.Tensor:
    """Read pieces of an array, shape `(n, *piece)`."""
    sides = cube_sides(source.shape, MAX_SAMPLES)
    free = [n - side + 1 for n, side in zip(source.shape, sides, strict=True)]
    pieces = []
    for number in range(N_PIECES):
        starts = zip(spread_place(free, number), sides, strict=True)
        pieces.append(as_real_tensor(source.path, source.read(tuple(slice(at, at + side) for at, side in starts))))
    return torch.stack(pieces)
