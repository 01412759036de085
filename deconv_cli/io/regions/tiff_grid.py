"""The tiles or strips of the planes of a TIFF series: where each lies in the array, and where in the file."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deconv_cli.errors import MalformedInputError
from deconv_cli.io.regions.region_source import Region

_LETTERS = "SZYXS"
"""Axes of a plane as TIFF has them: samples that lie apart, depth, rows, columns, samples that lie together."""


@dataclass(frozen=True)
class Segment:
    """One tile or strip of one plane.

    Attributes:
        plane: index of the plane, one number for each axis in front of it.
        index: among the segments of the plane.
        box: what it covers of the plane, in its five axes; tiles reach beyond the end.
    """

    plane: tuple[int, ...]
    index: int
    box: tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class TiffGrid:
    """How the planes of a series are cut.

    Attributes:
        planes: sizes of the axes that count planes.
        plane: sizes of the five axes of a plane.
        segment: depth, rows and columns of a segment.
        offsets: byte at which each segment begins, shape (planes, segments).
        sizes: bytes of each segment, likewise.
        is_raw: samples are stored as they are, plane by plane without a gap.
    """

    planes: tuple[int, ...]
    plane: tuple[int, ...]
    segment: tuple[int, int, int]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    is_raw: bool

    @staticmethod
    def of(path: object, series: Any) -> TiffGrid:  # noqa: ANN401 (tifffile has no types)
        """Read the grid of a series whose pages were checked.

        Raises:
            MalformedInputError: its axes are not those of its planes, with others in front.
        """
        page = series.keyframe
        n_outer = len(series.shape) - len(page.shape)
        letters = "".join(
            letter for letter, size in zip(_LETTERS, page.shaped, strict=True) if size > 1 or letter in "YX"
        )
        if n_outer < 0 or tuple(series.shape[n_outer:]) != tuple(page.shape) or page.axes != letters:
            raise MalformedInputError(
                f"'{path}' should hold planes one after the other, but holds {series.axes} {tuple(series.shape)} as "
                f"pages of {page.axes} {tuple(page.shape)}; save it again."
            )
        planes = tuple(int(size) for size in series.shape[:n_outer])
        offsets = np.array([one.dataoffsets for one in series.pages], np.int64)
        sizes = np.array([one.databytecounts for one in series.pages], np.int64)
        is_raw = bool(page.is_final) and bool(
            (offsets[:, :-1] + sizes[:, :-1] == offsets[:, 1:]).all() and (sizes.sum(axis=1) == page.nbytes).all()
        )
        if series.dataoffset is not None:
            # All planes in one piece; the file may have a page for the first alone.
            offsets, is_raw = series.dataoffset + page.nbytes * np.arange(math.prod(planes))[:, None], True
        tile = (page.tiledepth, page.tilelength, page.tilewidth)
        segment = tile if page.is_tiled else (1, page.rowsperstrip, page.imagewidth)
        return TiffGrid(planes, tuple(page.shaped), segment, offsets, sizes, is_raw)

    @property
    def chunk(self) -> tuple[int, ...]:
        """Samples that are stored together, along each axis of the series."""
        depth, rows, columns = (1, 1, self.plane[3]) if self.is_raw else self.segment
        sizes = zip(_LETTERS, self.plane, (1, depth, rows, columns, self.plane[4]), strict=True)
        inner = [min(chunk, size) for letter, size, chunk in sizes if size > 1 or letter in "YX"]
        return (*(1 for _ in self.planes), *inner)

    def in_planes(self, region: Region) -> tuple[Region, Region]:
        """Split a region into that of the planes' numbers and that of the five axes of a plane."""
        inner = iter(region[len(self.planes) :])
        axes = zip(_LETTERS, self.plane, strict=True)
        return region[: len(self.planes)], tuple(
            next(inner) if size > 1 or letter in "YX" else slice(0, 1) for letter, size in axes
        )

    def number(self, plane: tuple[int, ...]) -> int:
        """Give the number of a plane by its index."""
        return int(np.ravel_multi_index(plane, self.planes)) if self.planes else 0

    def touched(self, region: Region) -> Iterator[Segment]:
        """Go through all segments that a region meets."""
        outer, inner = self.in_planes(region)
        lengths = (1, *self.segment, self.plane[4])
        counts = [-(-size // length) for size, length in zip(self.plane, lengths, strict=True)]
        met = [
            range(part.start // length, -(-part.stop // length)) for part, length in zip(inner, lengths, strict=True)
        ]
        for plane in itertools.product(*(range(part.start, part.stop) for part in outer)):
            for place in itertools.product(*met):
                box = tuple(slice(n * length, (n + 1) * length) for n, length in zip(place, lengths, strict=True))
                yield Segment(plane, int(np.ravel_multi_index(place, counts)), box)
