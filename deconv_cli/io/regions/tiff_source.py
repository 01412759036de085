"""TIFF files read a part at a time: of the tiles or strips only those are decoded that a part meets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deconv_cli.errors import MalformedInputError
from deconv_cli.io.codec import Array
from deconv_cli.io.codecs.tiff import TIFF
from deconv_cli.io.limits import allowing, memory_budget
from deconv_cli.io.regions.region_source import Region, RegionSource, fingerprint_of_file, overlap, shape_of
from deconv_cli.io.regions.tiff_grid import TiffGrid
from deconv_cli.io.sources import refusing_damage
from deconv_cli.io.stored_image import StoredImage


@dataclass(frozen=True, eq=False)
class TiffSource(RegionSource):
    """A series of a TIFF file, at full resolution."""

    series: int | None = None

    def read(self, region: Region) -> Array:
        """Read a part; decoded is no more than one tile or strip at a time."""
        # Opening it has compared what it promises with its size, perhaps in another process.
        with refusing_damage(self.path, f"a {TIFF.name} file"), allowing(memory_budget()):
            pages = _pages(self.path, self.series, self.path.stat().st_mtime_ns)
            outer, inner = pages.grid.in_planes(region)
            found = np.empty(shape_of((*outer, *inner)), self.dtype)
            fill = _fill_raw if pages.grid.is_raw else _fill_decoded
            fill(self.path, pages, region, found)
            return found.reshape(shape_of(region))

    def fingerprint(self) -> str:
        """Hash what the headers say, with size and time of the file."""
        return fingerprint_of_file(self.path, self.shape, self.dtype, self.axes, self.series)


def open_tiff(path: Path, series: int | None) -> TiffSource:
    """Read the headers of a file.

    Raises:
        UsageError: no series of this number.
        InputRefusedError: damaged, cut short, or stored in a way that is not read by parts.
    """
    with refusing_damage(path, f"a {TIFF.name} file"):
        pages = _pages(path, series, path.stat().st_mtime_ns)
    image = pages.image
    for is_other, what in (
        (pages.has_palette, "a palette"),
        (image.alpha is not None, "an alpha channel"),
        (image.orientation != 1, f"orientation {image.orientation}"),
    ):
        if is_other:
            raise MalformedInputError(
                f"'{path}' should hold upright gray, RGB or channels to be read by parts, but has {what}; convert it "
                "first."
            )
    return TiffSource(
        path=path,
        format_name=TIFF.name,
        shape=image.shape,
        dtype=image.dtype,
        axes=image.axes,
        chunk=pages.grid.chunk,
        is_picture=True,
        metadata=image.metadata,
        record=image.record,
        notes=image.notes,
        series=series,
    )


@dataclass(frozen=True, eq=False)
class _Pages:
    """What is kept of a file from one part to the next: no samples, and no open file."""

    image: StoredImage
    grid: TiffGrid
    has_palette: bool
    stored_type: np.dtype[np.generic]
    """With its byte order."""
    decode: Callable[[bytes, int, int], Array]


@functools.lru_cache(maxsize=4)
def _pages(path: Path, series: int | None, time_ns: int) -> _Pages:
    """Read and check the headers, again where the file has changed since."""
    from deconv_cli.io.codecs.tiff_library import choose_series, opened_tiff, segment_decoder
    from deconv_cli.io.codecs.tiff_reader import describe_series, has_palette

    with opened_tiff(path, by_parts=True) as (opened, ome):
        index, chosen = choose_series(path, opened, series, by_parts=True)
        return _Pages(
            image=describe_series(path, opened, ome, index, chosen),
            grid=TiffGrid.of(path, chosen),
            has_palette=has_palette(chosen),
            stored_type=np.dtype(opened.byteorder + chosen.dtype.char),
            decode=segment_decoder(chosen),
        )


def _fill_decoded(path: Path, pages: _Pages, region: Region, found: Array) -> None:
    grid = pages.grid
    outer, inner = grid.in_planes(region)
    with path.open("rb") as stream:
        for segment in grid.touched(region):
            number = grid.number(segment.plane)
            stream.seek(int(grid.offsets[number, segment.index]))
            data = stream.read(int(grid.sizes[number, segment.index]))
            samples = pages.decode(data, number, segment.index)
            here, there = overlap(inner, segment.box)
            found[_place(segment.plane, outer)][here] = samples[None][there]


def _fill_raw(path: Path, pages: _Pages, region: Region, found: Array) -> None:
    grid = pages.grid
    outer, inner = grid.in_planes(region)
    for plane in np.ndindex(*shape_of(outer)):
        number = grid.number(tuple(part.start + i for part, i in zip(outer, plane, strict=True)))
        mapped = np.memmap(path, pages.stored_type, "r", int(grid.offsets[number, 0]), grid.plane)
        found[plane] = mapped[inner]


def _place(plane: tuple[int, ...], outer: Region) -> tuple[int, ...]:
    return tuple(i - part.start for i, part in zip(plane, outer, strict=True))
