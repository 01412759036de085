"""Zarr and OME-Zarr, read and written by parts."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deconv_cli.errors import FileAccessError
from deconv_cli.io import records
from deconv_cli.io.atomic import partial_path
from deconv_cli.io.codec import Array, StoredImage, WriteRequest, zeros_of
from deconv_cli.io.codecs.zarr_folder import (
    FORMAT_FILE,
    ZARR,
    ArraySpec,
    build_levels,
    channel_windows,
    describe_arrays,
    open_described,
    plan_arrays,
    write_descriptions,
)
from deconv_cli.io.codecs.zarr_source import HALF_WRITTEN, ZarrSource, count_missing, describe_zarr, open_stored
from deconv_cli.io.files import (
    address_of,
    is_member,
    list_members,
    read_member,
    refuse_special,
    refusing_damage,
    remove,
    write_member,
)
from deconv_cli.io.layout import Layout
from deconv_cli.io.metadata import Metadata
from deconv_cli.io.partial_file import put_in_place, refusing_to_write
from deconv_cli.io.regions import Region, RegionFormat, RegionSource, RegionTarget

_PLAN = "plan.json"
"""Marks a folder of chunks of an unfinished result, and describes that result."""
_MAX_UNIT_BYTES = 64 * 2**20
"""Of a chunk or shard that is kept from the source."""


@dataclass(frozen=True, eq=False)
class ZarrTarget(RegionTarget):
    """Chunks of a Zarr in the making.

    On a disk they lie in a folder of a hidden name. At an address, where nothing can be renamed, they lie at their
    final place, without the descriptions that would make them an array.
    """

    specs: tuple[ArraySpec, ...] = ()
    """The array at each resolution."""
    documents: tuple[tuple[str, str], ...] = ()
    """The descriptions of the arrays, by their names."""
    metadata: Metadata = field(default_factory=Metadata)

    @property
    def folder(self) -> Path:
        """The folder of the chunks."""
        return self.path if address_of(self.path) else partial_path(self.path)

    def create(self) -> bool:
        """Write the plan; chunks of an earlier run stay if its plan was the same."""
        plan = json.dumps(self.documents).encode()
        with refusing_to_write(self.path):
            if self.folder.is_symlink():
                remove(self.folder)
            refuse_special(self.folder / _PLAN)
            before = read_member(self.folder / _PLAN) if self.is_begun() else None
            if before == plan:
                return True
            # Without a plan there is nothing yet, or a finished result; another process would have written this plan.
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
        """Look for the plan."""
        with refusing_to_write(self.path):
            return is_member(self.folder / _PLAN)

    def write(self, region: Region, samples: Array) -> None:
        """Write whole chunks or shards."""
        self.check_units(region)
        with refusing_to_write(self.path):
            self._open(0)[region] = samples

    def finish(self, record: dict[str, Any]) -> None:
        """Compute the smaller resolutions, and write the descriptions."""
        complete = ZARR.record_to_keep(records.complete_record(record, self.shape, self.dtype, None))
        image = StoredImage(zeros_of(self.shape, self.dtype), self.axes, self.metadata, record=complete)
        with refusing_to_write(self.path):
            n_missing, n_files = count_missing(self.folder / self.specs[0].member, self.shape, self.unit)
            if n_missing:  # they would be read as zeros
                raise FileAccessError(
                    f"'{self.path}' should have {n_files} files of samples, but {n_missing} are missing in "
                    f"'{self.folder}'; run again to write them."
                )
            build_levels(self._open, len(self.specs), self.axes)
            write_descriptions(self.folder, dict(self.documents), self.specs, image, self._windows())
            for name in [name for name, *_ in list_members(self.folder) if name.endswith(HALF_WRITTEN)]:
                remove(self.folder / name)
            if self.folder != self.path:
                put_in_place(self.path)
            remove(self.path / _PLAN)  # the last step: as long as the plan is there, a resumed run does all this again

    def discard(self) -> None:
        """Remove the chunks."""
        with refusing_to_write(self.path):
            remove(self.folder)

    def _open(self, level: int) -> Any:  # noqa: ANN401 (a zarr.Array)
        return open_described(self.folder, dict(self.documents), self.specs[level].member)

    def _windows(self) -> list[tuple[float, float]]:
        """Estimate the windows of viewers from one unit in the middle of each channel, not from terabytes."""
        if not self.specs[0].member:
            return []
        middle = tuple(slice(n // 2 // u * u, n // 2 // u * u + u) for n, u in zip(self.shape, self.unit, strict=True))
        place = self.axes.find("C")
        regions = [
            tuple(slice(channel, channel + 1) if i == place else part for i, part in enumerate(middle))
            for channel in range(self.shape[place] if place >= 0 else 1)
        ]
        return channel_windows([self._open(0)[region] for region in regions], self.axes)


class ZarrRegions(RegionFormat):
    """Chunks and shards in and out; those of a Zarr are kept for its result."""

    def open(self, path: Path, member: str | int | None) -> RegionSource:
        """Open an array, or the full resolution of an image."""
        with refusing_damage(path, f"a {ZARR.name}"):
            source, _ = describe_zarr(path, None if member is None else int(member))
            open_stored(path, source.member)
        return source

    def plan(self, request: WriteRequest, layout: Layout, source: RegionSource) -> RegionTarget:
        """Decide on the axes, the chunks, the resolutions and the metadata."""
        image = ZARR.describe_result(request, layout, source.metadata)
        specs = plan_arrays(image, *_units_of(source, image.axes, request.dtype))
        return ZarrTarget(
            *(request.path, image.shape, request.dtype, image.axes, specs[0].shard or specs[0].chunk, image.notes),
            specs=specs,
            documents=tuple(describe_arrays(request.path, specs).items()),
            metadata=image.metadata,
        )


ZARR_REGIONS = ZarrRegions()


def _units_of(source: RegionSource, axes: str, dtype: str) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """Keep chunk and shard of a Zarr of the same axes, unless they are too large to be worked on one by one."""
    if not isinstance(source, ZarrSource) or source.axes not in ("", axes) or len(source.chunk) != len(axes):
        return None, None
    n_bytes = math.prod(source.shard or source.chunk) * np.dtype(dtype).itemsize
    return (source.chunk, source.shard) if n_bytes <= _MAX_UNIT_BYTES else (None, None)
