"""Reading large arrays a part at a time: opening them, and reading pieces that represent the whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from deconv_cli.errors import UsageError
from deconv_cli.io.codec import StoredImage, all_codecs, codec_of_content
from deconv_cli.io.files import read_head
from deconv_cli.io.image import ImageFile, choose_member, image_of
from deconv_cli.io.layout import Array, as_real_array, tensor_axes, working_dtype
from deconv_cli.io.region_arrays import RegionSource


def open_regions(
    path: Path, *, axes: str | None = None, series: int | None = None, tensor: str | None = None
) -> RegionSource:
    """Open an array that is read a part at a time.

    Args:
        path: the file; its format is recognized by its content.
        axes: letters of the stored axes, in place of those in the file.
        series: number of the TIFF series, where a file holds several.
        tensor: name of the tensor, where a file holds several.

    Raises:
        UsageError: no such file, series or tensor, axes that do not fit, or a format that is only read as a whole.
        FileAccessError: the file cannot be read.
        InputRefusedError: damaged, unsafe, or no real numbers.
    """
    codec = codec_of_content(path, read_head(path))
    source = codec.open_regions(path, choose_member(path, codec, tensor, series))
    working_dtype(path, source.dtype, source.shape)
    if axes and len(axes) != len(source.shape):
        raise UsageError(f"axes '{axes}' name {len(axes)} axes, but the shape {source.shape} has {len(source.shape)}.")
    return replace(source, axes=axes.upper()) if axes else source


_CORNER = 8
"""Samples along each axis, except axes of channels and shorter ones."""


def read_corner(source: RegionSource, *, are_axes_named: bool) -> ImageFile:
    """Read a few samples of an array, with all channels, as an image; raises as `image_of` does.

    The image has the axes, spacing, tone curve and record of the whole, but not its shape. `are_axes_named` tells
    whether the caller named the axes.
    """
    letters = source.axes or tensor_axes(source.path, len(source.shape))
    sizes = [n if letter in "CS" else min(n, _CORNER) for letter, n in zip(letters, source.shape, strict=True)]
    samples = source.read(tuple(slice(0, n) for n in sizes))
    codec = next(codec for codec in all_codecs() if codec.name == source.format_name)
    stored = StoredImage(samples, source.axes, source.metadata, source.record)
    return image_of(source.path, codec, stored, source.fingerprint(), source.axes if are_axes_named else None)


N_PIECES, MAX_SAMPLES = 64, 2**13
"""Pieces that are read to represent an array, and samples of each at most."""


def cube_sides(size: Sequence[int], n_samples: int) -> tuple[int, ...]:
    """Compute the sides of a piece of a frame that is as near to a cube as possible, of `n_samples` at most."""
    sides, left = dict.fromkeys(range(len(size)), 1), float(n_samples)
    for i, axis in enumerate(sorted(sides, key=lambda axis: size[axis])):
        sides[axis] = max(1, min(size[axis], int(left ** (1 / (len(size) - i)))))
        left /= sides[axis]
    return tuple(sides[axis] for axis in range(len(size)))


def spread_place(lengths: Sequence[int], number: int) -> tuple[int, ...]:
    """Compute a place of a low-discrepancy sequence in all axes, so that no two lie in one row or one page."""
    # Roberts, The unreasonable effectiveness of quasirandom sequences, 2018: powers of the root of x^(d+1) = x + 1.
    root = 2.0
    for _ in range(40):
        root = (1 + root) ** (1 / (len(lengths) + 1))
    shares = [math.modf(0.5 + number * root ** -(axis + 1))[0] for axis in range(len(lengths))]
    return tuple(min(int(share * n), n - 1) for share, n in zip(shares, lengths, strict=True))


def read_spread(source: RegionSource) -> Array:
    """Read pieces from all over an array, shape `(n, *piece)`."""
    sides = cube_sides(source.shape, MAX_SAMPLES)
    free = [n - side + 1 for n, side in zip(source.shape, sides, strict=True)]
    pieces = []
    for number in range(N_PIECES):
        starts = zip(spread_place(free, number), sides, strict=True)
        pieces.append(as_real_array(source.path, source.read(tuple(slice(at, at + side) for at, side in starts))))
    return np.stack(pieces)
