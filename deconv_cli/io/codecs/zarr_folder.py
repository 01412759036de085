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
from deconv_cli.io.codecs.zarr_source import NAME, ZarrSource, describe_zarr, open_stored, zarr_package
from deconv_cli.io.codecs.zarr_writer import (
    ZarrTarget,
    build_levels,
    describe_arrays,
    each_unit,
    open_described,
    plan_arrays,
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
    has_levels = True
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
        """Refuse axes that OME-Zarr lacks if the name ends in .ome.zarr, and impossible numbers of resolutions.

        Raises:
            UsageError: they are asked for, or the package is missing.
        """
        with zarr_package(request.path):
            pass
        if is_ome(request):
            longest = max(n for a, n in zip(request.layout.axes, request.layout.sizes, strict=True) if a in "YX")
            n_most = 1 + (longest - 1).bit_length()  # down to a single pixel
            if request.n_levels > n_most:
                raise UsageError(
                    f"'{request.path}' should hold {request.n_levels} resolutions, but an image of {longest} pixels a "
                    f"side has {n_most}."
                )
            return
        if _is_ome_name(request.path):
            raise UsageError(
                f"'{request.path}' cannot hold axes {request.layout.axes}, since OME-Zarr knows only T and Z besides "
                "channels and planes; choose .zarr."
            )
        if request.n_levels > 1:
            raise UsageError(
                f"'{request.path}' cannot hold several resolutions, since it would be a bare array; choose .ome.zarr."
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
        specs = plan_arrays(image)
        documents = describe_arrays(path, specs)
        samples = np.asarray(image.samples)
        array = open_described(path, documents, specs[0].member)
        for region in each_unit(array):
            array[region] = samples[region]
        build_levels(lambda level: open_described(path, documents, specs[level].member), len(specs), image.axes)
        write_descriptions(path, documents, specs, image)

    def open_regions(self, path: Path, member: str | int | None) -> RegionSource:
        """Open an array, or the full resolution of an image."""
        with refusing_damage(path, f"a {self.name}"):
            source, _ = describe_zarr(path, None if member is None else int(member))
            open_stored(path, source.member)
        return source

    def plan_regions(self, request: WriteRequest, layout: Layout, source: RegionSource) -> RegionTarget:
        """Decide on the axes, the chunks, the resolutions and the metadata; keep the chunks and shards of a Zarr."""
        image = self.describe_result(request, layout, source.metadata)
        specs = plan_arrays(image, *_units_of(source, image.axes, request.dtype))
        return ZarrTarget(
            *(request.path, image.shape, request.dtype, image.axes, specs[0].shard or specs[0].chunk, image.notes),
            specs=specs,
            documents=tuple(describe_arrays(request.path, specs).items()),
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


def _units_of(source: RegionSource, axes: str, dtype: str) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """Return chunk and shard of a Zarr source with the same axes.

    Both are `None` for any other source, or if they are too large to be processed one at a time.
    """
    if not isinstance(source, ZarrSource) or source.axes not in ("", axes) or len(source.chunk) != len(axes):
        return None, None
    n_bytes = math.prod(source.shard or source.chunk) * np.dtype(dtype).itemsize
    return (source.chunk, source.shard) if n_bytes <= _MAX_UNIT_BYTES else (None, None)
