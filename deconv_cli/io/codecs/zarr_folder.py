"""Zarr: one array in a folder of chunks, or OME-Zarr, an image with its axes, distances, channels and resolutions."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from deconv_cli.errors import UsageError
from deconv_cli.io import limits
from deconv_cli.io.codec import Codec, StoredImage, WriteRequest
from deconv_cli.io.codecs import zarr_ome
from deconv_cli.io.codecs.zarr_source import NAME, ZarrSource, describe_zarr, open_stored
from deconv_cli.io.codecs.zarr_writer import (
    ZarrTarget,
    default_chunk,
    describe_array,
    each_unit,
    member_of,
    open_described,
    write_descriptions,
)
from deconv_cli.io.files import FOLDER, refusing_damage
from deconv_cli.io.layout import Layout, rename_batch, working_bytes
from deconv_cli.io.metadata import Metadata
from deconv_cli.io.region_arrays import RegionSource, RegionTarget

OME_SUFFIX = ".ome.zarr"
_MAX_UNIT_BYTES = 64 * 2**20
"""Of a chunk or shard that is kept from the source."""


class Zarr(Codec):
    """Reads Zarr 2 and 3; writes Zarr 3, or OME-Zarr for names in .ome.zarr and for pictures of other formats."""

    name = NAME
    suffixes = (".zarr",)
    magic = (FOLDER,)
    is_folder = True
    record_inside = True
    carries = frozenset({"resolution", "channel_names"})
    selects = "series"

    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read an array, or the full resolution of an image."""
        found, n_stored = describe_zarr(path, None if member is None else int(member))
        limits.check_expansion(path, working_bytes(found.shape, np.dtype(found.dtype)), n_stored)
        samples = np.asarray(open_stored(path, found.member)[...])
        native = samples.astype(samples.dtype.newbyteorder("="), copy=False)
        return StoredImage(native, found.axes, found.metadata, found.record, notes=found.notes)

    def check(self, request: WriteRequest) -> None:
        """Refuse axes that OME-Zarr lacks if the name ends in .ome.zarr."""
        if _is_ome_name(request.path) and not is_ome(request):
            raise UsageError(
                f"'{request.path}' cannot hold axes {request.layout.axes}, since OME-Zarr knows only T and Z besides "
                "channels and planes; choose .zarr."
            )

    def order_axes(self, request: WriteRequest, layout: Layout) -> tuple[Layout, str, tuple[str, ...]]:
        """Keep the axes of an array, and order those of an image as OME-Zarr wants them."""
        if not is_ome(request):
            return layout, layout.axes, ()
        renamed = _renamed(layout.axes)
        order = sorted(range(len(renamed)), key=lambda place: zarr_ome.AXES.index(renamed[place]))
        letters, sizes = "".join(layout.axes[i] for i in order), tuple(layout.sizes[i] for i in order)
        new = [b for a, b in zip(layout.axes, renamed, strict=True) if a not in (b, "S")]
        notes = tuple(f"a batch axis was named {letter}" for letter in new)
        return replace(layout, axes=letters, sizes=sizes), "".join(renamed[i] for i in order), notes

    def choose_metadata(self, request: WriteRequest, image: StoredImage) -> tuple[Metadata, list[str]]:
        """Choose the metadata; a bare array has none."""
        kept, lost = super().choose_metadata(request, image)
        if is_ome(request):
            return replace(kept, flavor=zarr_ome.FLAVOR), lost
        shared = {"resolution": kept.resolution, "channel names": kept.channel_names}
        lost += [name for name, value in shared.items() if value]
        return Metadata(), [*lost, *kept.native, *kept.native_of_channels]

    def write(self, path: Path, image: StoredImage) -> None:
        """Write all chunks, and then their descriptions."""
        documents = describe_array(path, image, default_chunk(image.shape, image.axes))
        samples = np.asarray(image.samples)
        array = open_described(path, documents, member_of(image.metadata))
        for region in each_unit(array):
            array[region] = samples[region]
        write_descriptions(path, documents, image)

    def open_regions(self, path: Path, member: str | int | None) -> RegionSource:
        """Open an array, or the full resolution of an image."""
        with refusing_damage(path, f"a {self.name}"):
            source, _ = describe_zarr(path, None if member is None else int(member))
            open_stored(path, source.member)
        return source

    def plan_regions(self, request: WriteRequest, layout: Layout, source: RegionSource) -> RegionTarget:
        """Decide on the axes, the chunks and the metadata; keep the chunks and shards of a Zarr."""
        image = self.describe_result(request, layout, source.metadata)
        chunk, shard = _units_of(source, image, request.dtype)
        return ZarrTarget(
            *(request.path, image.shape, request.dtype, image.axes, shard or chunk, image.notes),
            documents=tuple(describe_array(request.path, image, chunk, shard).items()),
            metadata=image.metadata,
        )


ZARR = Zarr()


def _is_ome_name(path: Path) -> bool:
    return path.name.lower().endswith(OME_SUFFIX)


def is_ome(request: WriteRequest) -> bool:
    """Decide whether to write OME-Zarr: if the name asks for it, or for a picture whose axes fit."""
    was_array = request.source_format == Zarr.name and request.flavor != zarr_ome.FLAVOR
    is_wanted = _is_ome_name(request.path) or (request.from_picture and not was_array)
    letters = _renamed(request.layout.axes)
    return is_wanted and {"Y", "X"} <= set(letters) <= set(zarr_ome.AXES) and len(set(letters)) == len(letters)


def _renamed(axes: str) -> str:
    """Rename colors to channels, and a batch axis that OME-Zarr does not have to times or planes."""
    return rename_batch(axes if "C" in axes else axes.replace("S", "C"), zarr_ome.AXES)


def _units_of(source: RegionSource, image: StoredImage, dtype: str) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Choose chunk and shard: those of a Zarr source with the same axes, unless they are too large to be processed."""
    usual = default_chunk(image.shape, image.axes)
    if not isinstance(source, ZarrSource) or source.axes not in ("", image.axes):
        return usual, None
    if len(source.chunk) != len(image.axes):
        return usual, None
    n_bytes = math.prod(source.shard or source.chunk) * np.dtype(dtype).itemsize
    return (source.chunk, source.shard) if n_bytes <= _MAX_UNIT_BYTES else (usual, None)
