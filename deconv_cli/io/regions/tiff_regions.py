"""TIFF, read and written by parts."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from deconv_cli.io import records
from deconv_cli.io.atomic import synchronize
from deconv_cli.io.codec import Array, WriteRequest, not_carried
from deconv_cli.io.codecs.tiff import TIFF, order_axes
from deconv_cli.io.hidden_names import partial_path
from deconv_cli.io.layout import Layout
from deconv_cli.io.regions.partial_file import PartialFile, put_in_place, refusing_to_write
from deconv_cli.io.regions.region_source import Region, RegionSource, overlap
from deconv_cli.io.regions.region_target import RegionFormat, RegionTarget
from deconv_cli.io.regions.tiff_grid import TiffGrid
from deconv_cli.io.regions.tiff_source import open_tiff
from deconv_cli.io.sources import refusing_damage
from deconv_cli.io.stored_image import Metadata, StoredImage, zeros_of

TILE = 512
"""Rows and columns of a tile; of smaller planes as many as they have, in steps of the 16 that TIFF asks for."""


@dataclass(frozen=True, eq=False)
class TiffTarget(PartialFile):
    """A plain or OME file in the making: BigTIFF of its final size, which any process writes whole tiles into."""

    metadata: Metadata = field(default_factory=Metadata)

    def _make(self, own: Path) -> None:
        from deconv_cli.io.codecs.tiff_writer import write_empty_tiff

        image = StoredImage(zeros_of(self.shape, self.dtype), self.axes, self.metadata, record={})
        write_empty_tiff(own, image, self.tile)

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of a tile."""
        rows, columns = (tile_side(self.shape[self.axes.index(letter)]) for letter in "YX")
        return rows, columns

    def _without_samples(self, new: Path) -> list[tuple[int, int]]:
        _, grid = _headers_of(new)
        tiles = sorted(zip(grid.offsets.flat, (grid.offsets + grid.sizes).flat, strict=True))
        starts, stops = zip(*tiles, strict=True)
        return [*zip((0, *stops), (*starts, new.stat().st_size), strict=True)]

    def read(self, region: Region) -> Array:
        """Read a part that was written."""
        return open_tiff(self._written, None).read(region)

    def write(self, region: Region, samples: Array) -> None:
        """Write a part, tile by tile."""
        self.check_units(region)
        _, grid = _headers_of(partial_path(self.path))
        outer, inner = grid.in_planes(region)
        parts = samples.astype(self.dtype, copy=False).reshape([part.stop - part.start for part in (*outer, *inner)])
        with refusing_to_write(self.path), partial_path(self.path).open("rb+") as stream:
            for segment in grid.touched(region):
                tile = np.zeros([part.stop - part.start for part in segment.box], self.dtype)
                here, there = overlap(inner, segment.box)
                tile[there] = parts[tuple(i - part.start for i, part in zip(segment.plane, outer, strict=True))][here]
                stream.seek(int(grid.offsets[grid.number(segment.plane), segment.index]))
                stream.write(tile.tobytes())

    def finish(self, record: dict[str, Any]) -> None:
        """Add the record, and give the file its name."""
        from deconv_cli.io.codecs.tiff_writer import write_record

        complete = TIFF.record_to_keep(records.complete_record(record, self.shape, self.dtype, None))
        with refusing_to_write(self.path):
            synchronize(partial_path(self.path))  # which takes long: where the record was added, no run goes on
            write_record(partial_path(self.path), self.metadata, complete)
            put_in_place(self.path)


def _headers_of(path: Path) -> tuple[StoredImage, TiffGrid]:
    with refusing_damage(path, f"a {TIFF.name} file"):
        found = path.stat()
        return _headers(path, found.st_ino, found.st_size)


def tile_side(length: int) -> int:
    """Give the side of the tiles of a plane of this length."""
    return min(TILE, -(-length // 16) * 16)


@functools.lru_cache(maxsize=4)
def _headers(partial: Path, inode: int, n_bytes: int) -> tuple[StoredImage, TiffGrid]:
    """Read what a file in the making says of itself, again where it is another one by now."""
    from deconv_cli.io.codecs.tiff_library import choose_series, opened_tiff
    from deconv_cli.io.codecs.tiff_reader import describe_series

    with opened_tiff(partial, by_parts=True) as (opened, ome):
        index, chosen = choose_series(partial, opened, None, by_parts=True)
        return describe_series(partial, opened, ome, index, chosen), TiffGrid.of(partial, chosen)


class TiffRegions(RegionFormat):
    """Tiles and strips in, tiled BigTIFF out: OME's kind as for whole files, else plain.

    ImageJ's kind ends at 4 GB and has no tiles, so its files become plain ones.
    """

    def open(self, path: Path, member: str | int | None) -> RegionSource:
        """Open a series."""
        return open_tiff(path, None if member is None else int(member))

    def plan(self, request: WriteRequest, layout: Layout, source: RegionSource) -> RegionTarget:
        """Decide on the axes, the tiles and the metadata."""
        flavor = "ome" if request.flavor == "ome" else ""
        request = replace(request, flavor=flavor)
        layout, axes, notes = order_axes(request, layout)
        image = StoredImage(zeros_of(layout.sizes, request.dtype), axes, replace(source.metadata, flavor=flavor))
        kept, lost = TIFF.carry(request, image)
        lengths = zip(axes, layout.sizes, strict=True)
        is_together = axes.endswith("S")
        return TiffTarget(
            path=request.path,
            shape=layout.sizes,
            dtype=request.dtype,
            axes=axes,
            unit=tuple(
                tile_side(length) if letter in "YX" else length if letter == "S" and is_together else 1
                for letter, length in lengths
            ),
            notes=(*notes, *not_carried(lost)),
            metadata=kept,
        )


TIFF_REGIONS = TiffRegions()
