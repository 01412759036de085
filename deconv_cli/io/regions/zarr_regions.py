"""Zarr and OME-Zarr, read and written by parts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from deconv_cli.io.codec import WriteRequest, not_carried
from deconv_cli.io.codecs.zarr_folder import ZARR, order_axes, plan_arrays
from deconv_cli.io.codecs.zarr_library import describe_arrays
from deconv_cli.io.layout import Layout
from deconv_cli.io.regions.region_format import RegionFormat
from deconv_cli.io.regions.region_source import RegionSource
from deconv_cli.io.regions.region_target import RegionTarget
from deconv_cli.io.regions.zarr_source import ZarrSource, open_zarr
from deconv_cli.io.regions.zarr_target import ZarrTarget
from deconv_cli.io.stored_image import StoredImage, zeros_of

_MAX_UNIT_BYTES = 64 * 2**20
"""Of a chunk or shard that is taken over from the source."""


class ZarrRegions(RegionFormat):
    """Chunks and shards in and out; those of a Zarr are kept for its result."""

    def open(self, path: Path, member: str | int | None) -> RegionSource:
        """Open an array, or the full resolution of an image."""
        return open_zarr(path, None if member is None else int(member))

    def plan(self, request: WriteRequest, layout: Layout, source: RegionSource) -> RegionTarget:
        """Decide on the axes, the chunks, the resolutions and the metadata."""
        layout, axes, notes = order_axes(request, layout)
        image = StoredImage(zeros_of(layout.sizes, request.dtype), axes, source.metadata, n_levels=request.n_levels)
        metadata, lost = ZARR.carry(request, image)
        image = StoredImage(image.samples, axes, metadata, n_levels=request.n_levels)
        specs = plan_arrays(image, *_units_of(source, axes, request.dtype))
        return ZarrTarget(
            path=request.path,
            shape=layout.sizes,
            dtype=request.dtype,
            axes=axes,
            unit=specs[0].shard or specs[0].chunk,
            notes=(*notes, *not_carried(lost)),
            specs=specs,
            documents=tuple(describe_arrays(request.path, specs, {}).items()),
            metadata=metadata,
        )


ZARR_REGIONS = ZarrRegions()


def _units_of(source: RegionSource, axes: str, dtype: str) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """Take over chunk and shard of a Zarr of the same axes, unless they are too large to be worked on one by one."""
    if not isinstance(source, ZarrSource) or source.axes not in ("", axes) or len(source.chunk) != len(axes):
        return None, None
    n_bytes = math.prod(source.shard or source.chunk) * np.dtype(dtype).itemsize
    return (source.chunk, source.shard) if n_bytes <= _MAX_UNIT_BYTES else (None, None)
