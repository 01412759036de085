"""Zarr and OME-Zarr, read and written by parts."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deconv_cli.errors import FileAccessError
from deconv_cli.io import records
from deconv_cli.io.codec import Array, WriteRequest, not_carried
from deconv_cli.io.codecs.zarr_description import HALF_WRITTEN, count_missing, describe_zarr
from deconv_cli.io.codecs.zarr_folder import (
    ZARR,
    build_levels,
    channel_windows,
    order_axes,
    plan_arrays,
    write_descriptions,
)
from deconv_cli.io.codecs.zarr_library import FORMAT_FILE, ArraySpec, describe_arrays, open_described, open_stored
from deconv_cli.io.folders import (
    MARKS,
    address_of,
    is_member,
    list_members,
    read_member,
    refuse_special,
    remove,
    write_member,
)
from deconv_cli.io.hidden_names import partial_path
from deconv_cli.io.layout import Layout
from deconv_cli.io.regions.partial_file import put_in_place, refusing_to_write
from deconv_cli.io.regions.region_source import Region, RegionSource
from deconv_cli.io.regions.region_target import RegionFormat, RegionTarget
from deconv_cli.io.sources import refusing_damage
from deconv_cli.io.stored_image import Metadata, StoredImage, zeros_of


@dataclass(frozen=True, eq=False)
class ZarrSource(RegionSource):
    """An array of a Zarr, or the full resolution of an image."""

    member: str = ""
    """Its path in the folder."""
    shard: tuple[int, ...] | None = None
    """Samples that lie in one file, where these are more than a chunk."""

    def read(self, region: Region) -> Array:
        """Read a part; chunks that were never written are the fill value of the array."""
        with refusing_damage(self.path, f"a {ZARR.name}"):
            found = np.asarray(open_stored(self.path, self.member)[region])
            native: Array = found.astype(np.dtype(self.dtype), copy=False)
            return native

    def fingerprint(self) -> str:
        """Hash the descriptions, with the names, sizes and times of all chunks as far as they are listed."""
        found = hashlib.sha256(repr((self.shape, self.dtype, self.axes, self.member)).encode())
        for name in sorted(f"{self.member}/{mark}".lstrip("/") for mark in (*MARKS, ".zattrs")):
            found.update(read_member(self.path / name) or b"")
        for listed in sorted(list_members(self.path / self.member)):
            found.update(repr(listed).encode())
        return found.hexdigest()


def open_zarr(path: Path, series: int | None) -> ZarrSource:
    """Read the descriptions.

    Raises:
        UsageError: no image of this number, or the package zarr is missing.
        InputRefusedError: damaged, unsafe, or no image.
    """
    with refusing_damage(path, f"a {ZARR.name}"):
        found = describe_zarr(path, series)
        open_stored(path, found.member)
    return ZarrSource(
        path=path,
        format_name=ZARR.name,
        shape=found.shape,
        dtype=found.dtype,
        axes=found.axes,
        chunk=found.chunk,
        is_picture=ZARR.is_picture,
        metadata=found.metadata,
        record=found.record,
        notes=found.notes,
        member=found.member,
        shard=found.shard,
    )


_PLAN = "plan.json"
"""Says what the chunks in a folder are to become, until they are."""


@dataclass(frozen=True, eq=False)
class ZarrTarget(RegionTarget):
    """Chunks of a Zarr in the making.

    On a disk they lie in a folder of a hidden name. At an address, where nothing can be renamed, they lie where they
    will be, without the descriptions that would make them an array.
    """

    specs: tuple[ArraySpec, ...] = ()
    """The array at each resolution."""
    documents: tuple[tuple[str, str], ...] = ()
    """The descriptions of the arrays, by their names."""
    metadata: Metadata = field(default_factory=Metadata)

    @property
    def folder(self) -> Path:
        """Where the chunks are."""
        return self.path if address_of(self.path) else partial_path(self.path)

    def create(self) -> bool:
        """Say what will be there; chunks of an earlier run stay where they were to become the same."""
        plan = json.dumps(self.documents).encode()
        with refusing_to_write(self.path):
            if self.folder.is_symlink():
                remove(self.folder)
            refuse_special(self.folder / _PLAN)
            before = read_member(self.folder / _PLAN) if self.is_begun() else None
            if before == plan:
                return True
            # Without a plan there is nothing yet, or something whole; what another process has begun has this plan.
            if before is not None or is_member(self.folder / FORMAT_FILE):
                remove(self.folder)
            write_member(self.folder / _PLAN, plan)
            return False

    def read(self, region: Region) -> Array:
        """Read chunks that were written."""
        with refusing_damage(self.path, f"a {ZARR.name}"):
            folder = self.folder if self.is_begun() else self.path
            found: Array = np.asarray(open_described(folder, dict(self.documents), self.specs[0].member)[region])
            return found

    def is_begun(self) -> bool:
        """Look for what the chunks are to become."""
        with refusing_to_write(self.path):
            return is_member(self.folder / _PLAN)

    def write(self, region: Region, samples: Array) -> None:
        """Write whole chunks or shards."""
        self.check_units(region)
        with refusing_to_write(self.path):
            self._open(0)[region] = samples

    def finish(self, record: dict[str, Any]) -> None:
        """Compute the smaller resolutions, and describe it all."""
        complete = ZARR.record_to_keep(records.complete_record(record, self.shape, self.dtype, None))
        image = StoredImage(zeros_of(self.shape, self.dtype), self.axes, self.metadata, record=complete)
        with refusing_to_write(self.path):
            self._check_complete()
            build_levels(self._open, len(self.specs), self.axes)
            write_descriptions(self.folder, dict(self.documents), self.specs, image, self._windows())
            for name in [name for name, *_ in list_members(self.folder) if name.endswith(HALF_WRITTEN)]:
                remove(self.folder / name)
            if self.folder != self.path:
                put_in_place(self.path)
            remove(self.path / _PLAN)  # the last step: as long as it is there, a run that is gone on with does all this

    def discard(self) -> None:
        """Remove the chunks."""
        with refusing_to_write(self.path):
            remove(self.folder)

    def _check_complete(self) -> None:
        """Refuse to call whole what lacks chunks, which would be read as zeros.

        Raises:
            FileAccessError: some are missing.
        """
        n_missing, n_files = count_missing(self.folder / self.specs[0].member, self.shape, self.unit)
        if n_missing:
            raise FileAccessError(
                f"'{self.path}' should have {n_files} files of samples, but {n_missing} are missing in "
                f"'{self.folder}'; run again to write them."
            )

    def _open(self, level: int) -> Any:  # noqa: ANN401 (a zarr.Array)
        return open_described(self.folder, dict(self.documents), self.specs[level].member)

    def _windows(self) -> list[tuple[float, float]]:
        """Look at one unit in the middle of each channel, for viewers; an image of terabytes is not read again."""
        if not self.specs[0].member:
            return []
        middle = tuple(slice(n // 2 // u * u, n // 2 // u * u + u) for n, u in zip(self.shape, self.unit, strict=True))
        place = self.axes.find("C")
        regions = [
            tuple(slice(channel, channel + 1) if i == place else part for i, part in enumerate(middle))
            for channel in range(self.shape[place] if place >= 0 else 1)
        ]
        return channel_windows([self._open(0)[region] for region in regions], self.axes)


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
