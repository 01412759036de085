"""Zarr and OME-Zarr read a part at a time, on the disk or at an address."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deconv_cli.io.codec import Array
from deconv_cli.io.codecs.zarr_description import describe_zarr
from deconv_cli.io.codecs.zarr_folder import ZARR
from deconv_cli.io.codecs.zarr_library import open_stored
from deconv_cli.io.folders import MARKS, list_members, read_member
from deconv_cli.io.regions.region_source import Region, RegionSource
from deconv_cli.io.sources import refusing_damage


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
