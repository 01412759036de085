"""TIFF, read and written by parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from deconv_cli.io.codec import WriteRequest, not_carried
from deconv_cli.io.codecs.tiff import TIFF, order_axes
from deconv_cli.io.layout import Layout
from deconv_cli.io.regions.region_format import RegionFormat
from deconv_cli.io.regions.region_source import RegionSource
from deconv_cli.io.regions.region_target import RegionTarget
from deconv_cli.io.regions.tiff_source import open_tiff
from deconv_cli.io.regions.tiff_target import TiffTarget, tile_side
from deconv_cli.io.stored_image import StoredImage, zeros_of


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
