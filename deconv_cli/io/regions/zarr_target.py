"""Zarr and OME-Zarr written a part at a time: chunks first, and last of all what makes an array of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deconv_cli.errors import FileAccessError
from deconv_cli.io import records
from deconv_cli.io.codec import Array
from deconv_cli.io.codecs.zarr_description import HALF_WRITTEN, count_missing
from deconv_cli.io.codecs.zarr_folder import ZARR, channel_windows, write_descriptions
from deconv_cli.io.codecs.zarr_library import FORMAT_FILE, ArraySpec, open_described
from deconv_cli.io.codecs.zarr_pyramid import build_levels
from deconv_cli.io.folders import address_of, is_member, list_members, read_member, refuse_special, remove, write_member
from deconv_cli.io.hidden_names import partial_path
from deconv_cli.io.regions.partial_file import put_in_place, refusing_to_write
from deconv_cli.io.regions.region_source import Region
from deconv_cli.io.regions.region_target import RegionTarget
from deconv_cli.io.sources import refusing_damage
from deconv_cli.io.stored_image import Metadata, StoredImage, zeros_of

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
