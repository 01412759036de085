"""TIFF, read and written by parts: only the tiles or strips are decoded that a part overlaps."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deconv_cli.errors import MalformedInputError
from deconv_cli.io import records
from deconv_cli.io.atomic import partial_path, synchronize
from deconv_cli.io.codec import ALPHA_NOTE, StoredImage, zeros_of
from deconv_cli.io.codecs.tiff_reader import opened_series, segment_decoder
from deconv_cli.io.codecs.tiff_writer import write_empty_tiff, write_record
from deconv_cli.io.files import refusing_damage
from deconv_cli.io.layout import Array
from deconv_cli.io.limits import allowing, memory_budget
from deconv_cli.io.region_arrays import (
    Region,
    RegionSource,
    RegionTarget,
    overlap,
    put_in_place,
    refusing_to_write,
    shape_of,
)

TILE = 512
"""Rows and columns of a tile; smaller planes have one tile, in steps of the 16 that TIFF asks for."""
_LETTERS = "SZYXS"
"""Axes of a plane as TIFF has them: samples that lie apart, depth, rows, columns, samples that lie together."""


@dataclass(frozen=True, eq=False)
class TiffGrid:
    """The tiles or strips of the planes of a series: the place of each in the array, and in the file.

    Attributes:
        planes: sizes of the axes that count planes.
        plane: sizes of the five axes of a plane.
        segment: depth, rows and columns of a segment.
        offsets: byte at which each segment begins, shape (planes, segments).
        sizes: bytes of each segment, likewise.
        is_raw: samples are stored as they are, plane by plane without a gap.
        stored_type: with its byte order.
        decode: as by `segment_decoder`.
    """

    planes: tuple[int, ...]
    plane: tuple[int, ...]
    segment: tuple[int, int, int]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    is_raw: bool
    stored_type: np.dtype[np.generic]
    decode: Callable[[bytes, int, int], Array]

    @staticmethod
    def of(series: Any) -> TiffGrid:  # noqa: ANN401 (tifffile has no types)
        """Read the grid of a checked series; raises `ValueError` if its pages are not planes of it."""
        page = series.keyframe
        n_outer = len(series.shape) - len(page.shape)
        letters = "".join(a for a, size in zip(_LETTERS, page.shaped, strict=True) if size > 1 or a in "YX")
        if n_outer < 0 or tuple(series.shape[n_outer:]) != tuple(page.shape) or page.axes != letters:
            raise ValueError(f"its pages of {page.axes} {page.shape} are not planes of {series.axes} {series.shape}")
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
        stored_type = np.dtype(page.parent.byteorder + series.dtype.char)
        decode = segment_decoder(series)
        return TiffGrid(planes, tuple(page.shaped), segment, offsets, sizes, is_raw, stored_type, decode)

    @property
    def chunk(self) -> tuple[int, ...]:
        """Samples that are stored together, along each axis of the series."""
        depth, rows, columns = (1, 1, self.plane[3]) if self.is_raw else self.segment
        sizes = zip(_LETTERS, self.plane, (1, depth, rows, columns, self.plane[4]), strict=True)
        inner = [min(chunk, size) for letter, size, chunk in sizes if size > 1 or letter in "YX"]
        return (*(1 for _ in self.planes), *inner)

    def in_planes(self, region: Region) -> tuple[Region, Region]:
        """Split a region into the region of plane numbers and that of the five axes of a plane."""
        inner = iter(region[len(self.planes) :])
        axes = zip(_LETTERS, self.plane, strict=True)
        return region[: len(self.planes)], tuple(
            next(inner) if size > 1 or letter in "YX" else slice(0, 1) for letter, size in axes
        )

    def number(self, plane: tuple[int, ...]) -> int:
        """Compute the number of a plane from its index."""
        return int(np.ravel_multi_index(plane, self.planes)) if self.planes else 0

    def touched(self, region: Region) -> Iterator[tuple[tuple[int, ...], int, int, Region]]:
        """List the segments that a region overlaps.

        Yields:
            The index of its plane within the region, the number of the plane, the number of the segment in the plane,
            and the part of the plane's five axes that it covers; tiles reach beyond the end.
        """
        outer, inner = self.in_planes(region)
        lengths = (1, *self.segment, self.plane[4])
        counts = [-(-size // length) for size, length in zip(self.plane, lengths, strict=True)]
        met = [
            range(part.start // length, -(-part.stop // length)) for part, length in zip(inner, lengths, strict=True)
        ]
        for index in np.ndindex(*shape_of(outer)):
            number = self.number(tuple(part.start + i for part, i in zip(outer, index, strict=True)))
            for place in itertools.product(*met):
                box = tuple(slice(n * length, (n + 1) * length) for n, length in zip(place, lengths, strict=True))
                yield index, number, int(np.ravel_multi_index(place, counts)), box


@functools.lru_cache(maxsize=8)
def _headers(path: Path, series: int | None, _version: tuple[int, ...]) -> tuple[StoredImage, TiffGrid]:
    """Read and check the headers, again where the file has another version."""
    with opened_series(path, series, by_parts=True) as (image, found):
        return image, TiffGrid.of(found)


@dataclass(frozen=True, eq=False)
class TiffSource(RegionSource):
    """A series of a TIFF file, at full resolution."""

    series: int | None = None

    @classmethod
    def of(cls, path: Path, series: int | None) -> TiffSource:
        """Open a series; refuse one that needs more than its samples by `MalformedInputError`."""
        with refusing_damage(path, "a TIFF file"):
            image, grid = _headers(path, series, (path.stat().st_mtime_ns,))
        if ALPHA_NOTE in image.notes or image.orientation != 1:
            other = "an alpha channel" if ALPHA_NOTE in image.notes else f"orientation {image.orientation}"
            raise MalformedInputError(
                f"'{path}' should hold upright gray, RGB or channels to be read by parts, but has {other}; convert it "
                "first."
            )
        return cls(
            *(path, image.shape, image.dtype, image.axes, "TIFF", grid.chunk),
            is_picture=True,
            metadata=image.metadata,
            record=image.record,
            notes=image.notes,
            series=series,
        )

    def read(self, region: Region) -> Array:
        """Read a part; one tile or strip at a time is decoded."""
        # `open` has compared what it promises with its size, perhaps in another process.
        with refusing_damage(self.path, "a TIFF file"), allowing(memory_budget()):
            _, grid = _headers(self.path, self.series, (self.path.stat().st_mtime_ns,))
            outer, inner = grid.in_planes(region)
            found = np.empty(shape_of((*outer, *inner)), self.dtype)
            if grid.is_raw:
                for index in np.ndindex(*shape_of(outer)):
                    number = grid.number(tuple(part.start + i for part, i in zip(outer, index, strict=True)))
                    start = int(grid.offsets[number, 0])
                    found[index] = np.memmap(self.path, grid.stored_type, "r", start, grid.plane)[inner]
                return found.reshape(shape_of(region))
            with self.path.open("rb") as stream:
                for index, number, segment, box in grid.touched(region):
                    stream.seek(int(grid.offsets[number, segment]))
                    samples = grid.decode(stream.read(int(grid.sizes[number, segment])), number, segment)
                    here, there = overlap(inner, box)
                    found[index][here] = samples[None][there]
            return found.reshape(shape_of(region))


@dataclass(frozen=True, eq=False)
class TiffTarget(RegionTarget):
    """A plain or OME file in the making: BigTIFF of its final size, which any process writes whole tiles into."""

    def _make(self, own: Path) -> None:
        image = StoredImage(zeros_of(self.shape, self.dtype), self.axes, self.metadata, record={})
        rows, columns = (tile_side(self.shape[self.axes.index(letter)]) for letter in "YX")
        write_empty_tiff(own, image, (rows, columns))

    def _open(self, written: Path) -> RegionSource:
        return TiffSource.of(written, None)

    def write(self, region: Region, samples: Array) -> None:
        """Write a part, tile by tile."""
        self.check_units(region)
        grid = _grid_of(partial_path(self.path))
        outer, inner = grid.in_planes(region)
        parts = samples.astype(self.dtype, copy=False).reshape(shape_of((*outer, *inner)))
        with refusing_to_write(self.path), partial_path(self.path).open("rb+") as stream:
            for index, number, segment, box in grid.touched(region):
                tile = np.zeros(shape_of(box), self.dtype)
                here, there = overlap(inner, box)
                tile[there] = parts[index][here]
                stream.seek(int(grid.offsets[number, segment]))
                stream.write(tile.tobytes())

    def finish(self, record: dict[str, Any]) -> None:
        """Add the record, and rename the file."""
        complete = records.without_folders(records.complete_record(record, self.shape, self.dtype, None))
        with refusing_to_write(self.path):
            synchronize(partial_path(self.path))  # before the record, since a file with a record is not resumed
            write_record(partial_path(self.path), self.metadata, complete)
            put_in_place(self.path)


def _grid_of(partial: Path) -> TiffGrid:
    """Read the grid of a file in the making; its samples change, but not its inode."""
    with refusing_damage(partial, "a TIFF file"):
        found = partial.stat()
        return _headers(partial, None, (found.st_ino, found.st_size))[1]


def tile_side(length: int) -> int:
    """Compute the side of the tiles of a plane of this length."""
    return min(TILE, -(-length // 16) * 16)
