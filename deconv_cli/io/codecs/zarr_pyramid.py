"""The smaller resolutions of an image: each is the mean of two by two pixels of the one before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from deconv_cli.io.codec import Array
from deconv_cli.io.codecs.zarr_library import each_unit


def half_shape(shape: tuple[int, ...], axes: str) -> tuple[int, ...]:
    """Give the shape of the next resolution; an odd side keeps its last pixel."""
    return tuple((size + 1) // 2 if a in "YX" else size for size, a in zip(shape, axes, strict=True))


def build_levels(open_level: Callable[[int], Any], n_levels: int, axes: str) -> None:
    """Compute all resolutions but the first, each from the one before, one file at a time.

    Args:
        open_level: opens a resolution by its number, 0 the full one, for reading and writing.
        n_levels: how many there are.
        axes: letters of the axes.
    """
    for level in range(1, n_levels):
        larger, smaller = open_level(level - 1), open_level(level)
        for region in each_unit(smaller):
            smaller[region] = halve(larger[_doubled(region, axes)], axes)


def halve(samples: Array, axes: str) -> Array:
    """Average two by two pixels along Y and X; the last one of an odd side is averaged along the other axis alone.

    Whole numbers are rounded, half to even.
    """
    values = samples.astype(np.float64)
    for place in (i for i, letter in enumerate(axes) if letter in "YX"):
        odd = values.shape[place] % 2
        padded = np.pad(values, [(0, odd if i == place else 0) for i in range(values.ndim)], mode="edge")
        pairs = padded.reshape(*padded.shape[:place], -1, 2, *padded.shape[place + 1 :])
        values = pairs.mean(axis=place + 1)
    rounded = np.rint(values) if samples.dtype.kind in "ui" else values
    found: Array = rounded.astype(samples.dtype)
    return found


def _doubled(region: tuple[slice, ...], axes: str) -> tuple[slice, ...]:
    """Give the region of the larger resolution; where it ends beyond, it is cut."""
    factors = [2 if letter in "YX" else 1 for letter in axes]
    return tuple(slice(part.start * n, part.stop * n) for part, n in zip(region, factors, strict=True))
