"""What a file says of a large array before any of its samples is read, and how a part of it is read."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from deconv_cli.errors import FileAccessError
from deconv_cli.io.codec import Array
from deconv_cli.io.folders import spelled
from deconv_cli.io.sources import reason_of
from deconv_cli.io.stored_image import Metadata

Region: TypeAlias = tuple[slice, ...]
"""One slice for each stored axis, with plain start and stop inside of the array, and no step."""


@dataclass(frozen=True, eq=False)
class RegionSource(ABC):
    """An array of a file that is read a part at a time; opens the file anew in whichever process it is sent to.

    Attributes:
        path: the file or folder, or the address of one.
        format_name: as messages call the format.
        shape: as stored.
        dtype: NumPy name of the stored sample type.
        axes: a letter for each axis; empty where the file names none.
        chunk: samples that are stored together, along each axis; parts are best read in whole ones.
        is_picture: whether a viewer shows such files.
        metadata: what else the file says.
        record: what an earlier run wrote into it.
        notes: what is to be known of how it is read, a sentence each.
    """

    path: Path
    format_name: str
    shape: tuple[int, ...]
    dtype: str
    axes: str
    chunk: tuple[int, ...]
    is_picture: bool
    metadata: Metadata = field(default_factory=Metadata)
    record: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Bytes of all samples, in memory."""
        return math.prod(self.shape) * (2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize)

    @property
    def spelled_path(self) -> str:
        """The path as it was typed: an address with both of its slashes."""
        return spelled(self.path)

    @abstractmethod
    def read(self, region: Region) -> Array:
        """Read a part, as stored, of the region's shape, in native byte order.

        Raises:
            MalformedInputError: the file is damaged there.
            FileAccessError: it cannot be read.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Give a SHA-256 that changes when the file does: of what the file says of itself, its size and its times.

        Reading all samples of a file of terabytes for a hash would cost more than the work.
        """


def fingerprint_of_file(path: Path, *described: object) -> str:
    """Hash what a file says of itself, with its size and its time."""
    try:
        found = path.stat()
    except OSError as error:
        raise FileAccessError(f"'{path}' cannot be read: {reason_of(error)}.") from error
    return hashlib.sha256(repr((*described, found.st_size, found.st_mtime_ns)).encode()).hexdigest()


def shape_of(region: Region) -> tuple[int, ...]:
    """Give the shape of a region."""
    return tuple(part.stop - part.start for part in region)


def overlap(first: Region, second: Region) -> tuple[Region, Region]:
    """Give what two regions share, as a region of the first, and as one of the second."""
    starts = [max(a.start, b.start) for a, b in zip(first, second, strict=True)]
    stops = [min(a.stop, b.stop) for a, b in zip(first, second, strict=True)]
    shared = list(zip(starts, stops, strict=True))
    return _relative(shared, first), _relative(shared, second)


def _relative(shared: list[tuple[int, int]], region: Region) -> Region:
    return tuple(slice(a - part.start, b - part.start) for (a, b), part in zip(shared, region, strict=True))
