"""Arrays in files that are read or written a part at a time, by one process or by several."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import math
import os
import secrets
import shutil
import stat
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from deconv_cli.errors import DeconvError, FileAccessError
from deconv_cli.io import atomic
from deconv_cli.io.atomic import partial_path
from deconv_cli.io.files import explaining, remove
from deconv_cli.io.layout import Array
from deconv_cli.io.metadata import Metadata

Region: TypeAlias = tuple[slice, ...]
"""One slice for each stored axis, with plain start and stop inside of the array, and no step."""
_NOT_STORED = ("path", "metadata", "record", "notes")
"""Attributes of a source that do not say how its samples are stored."""
_OF_HEADER = ("shape", "dtype", "axes", "chunk", "metadata", "record")
"""Attributes of a source that its file holds besides the samples."""


def shape_of(region: Region) -> tuple[int, ...]:
    """Compute the shape of a region."""
    return tuple(part.stop - part.start for part in region)


def overlap(first: Region, second: Region) -> tuple[Region, Region]:
    """Intersect two regions; return the intersection as a region of the first, and as one of the second."""
    shared = [(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(first, second, strict=True)]
    relative = [
        tuple(slice(a - part.start, b - part.start) for (a, b), part in zip(shared, region, strict=True))
        for region in (first, second)
    ]
    return relative[0], relative[1]


@dataclass(frozen=True, eq=False)
class _Array(ABC):
    """An array in a file.

    Attributes:
        path: of the file or folder.
        shape: as stored.
        dtype: NumPy name of the sample type.
        axes: a letter for each axis; empty where the file names none.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: str
    axes: str

    @property
    def n_bytes(self) -> int:
        """Bytes of all samples, in memory."""
        return math.prod(self.shape) * (2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize)


@dataclass(frozen=True, eq=False)
class RegionSource(_Array):
    """An array of a file that is read a part at a time; each process that it is sent to opens the file itself.

    Attributes:
        format_name: the name of the format in messages.
        chunk: samples that are stored together, along each axis; whole chunks are read fastest.
        is_picture: whether a viewer shows such files.
        metadata: of the file.
        record: of the run that wrote the file.
        notes: on how the file is read, a sentence each.
    """

    format_name: str
    chunk: tuple[int, ...]
    is_picture: bool
    metadata: Metadata = field(default_factory=Metadata)
    record: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @abstractmethod
    def read(self, region: Region) -> Array:
        """Read a part, as stored, of the region's shape, in native byte order.

        Raises:
            MalformedInputError: the file is damaged there.
            FileAccessError: it cannot be read.
        """

    def fingerprint(self) -> str:
        """Compute a SHA-256 that changes when the file does, from its description, its size and its time.

        Hashing all samples of a file of terabytes would cost more than the work.
        """
        with explaining(f"'{self.path}' cannot be read"):
            found = self.path.stat()
        described = [value for name, value in vars(self).items() if name not in _NOT_STORED]
        return hashlib.sha256(repr((described, found.st_size, found.st_mtime_ns)).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class RegionTarget(_Array):
    """An array whose parts are written in any order, also more than once, and that can be read when it is complete.

    Until `finish` it is an unfinished file or folder of a hidden name, and there is no result at `path`.
    A target can be sent to other processes. Two writers never share a unit if each writes whole units.

    Attributes:
        unit: samples along each axis that are written together, or not at all: the chunk or shard of the format.
        notes: on metadata that could not be carried over from the source, and on axes that were renamed.
        metadata: of the file.
    """

    unit: tuple[int, ...]
    notes: tuple[str, ...] = ()
    metadata: Metadata = field(default_factory=Metadata)

    def create(self) -> bool:
        """Make the hidden file, unless an earlier run or another process did; return whether it was there already.

        A hidden file that differs from a new one in more than its samples is replaced, and so is a link or a pipe.

        Raises:
            FileAccessError: no permission, or the disk has too little room.
        """
        partial = partial_path(self.path)
        own = partial.with_name(f"{partial.name}-{secrets.token_hex(4)}")
        with refusing_to_write(self.path):
            try:
                self._make(own)
                # If none is there yet, none is removed: another process may put its own there meanwhile.
                if os.path.lexists(partial):
                    if self._is_like(partial, own):
                        return True
                    remove(partial)
                room = shutil.disk_usage(self.path.parent).free
                if room < self.n_bytes and own.is_file():  # a folder of compressed chunks may take less
                    raise FileAccessError(
                        f"'{self.path}' needs {self.n_bytes} bytes, but its disk has {room} left; free some space, or "
                        "choose another disk."
                    )
                atomic.name_new(own, partial)
            except FileExistsError:
                return True  # of several processes the first one wins, and may have written into its file already
            finally:
                remove(own)
            # The file is mapped, and a process that writes to a mapped file on a full disk ends.
            if partial.is_file() and hasattr(os, "posix_fallocate"):
                with partial.open("rb+") as stream:
                    os.posix_fallocate(stream.fileno(), 0, partial.stat().st_size)
        return False

    def is_begun(self) -> bool:
        """Check whether the hidden file is there, so that the result is not finished yet."""
        return partial_path(self.path).exists()

    def discard(self) -> None:
        """Remove the hidden file."""
        with refusing_to_write(self.path):
            _remove_partial(self.path)

    @abstractmethod
    def write(self, region: Region, samples: Array) -> None:
        """Write a part that covers whole units, or ends with the array, once or again. Raises `FileAccessError`."""

    def read(self, region: Region) -> Array:
        """Read a part of the unfinished or finished result; raises `DeconvError` if it is damaged."""
        return self._open(partial_path(self.path) if self.is_begun() else self.path).read(region)

    def check_units(self, region: Region) -> None:
        """Raise `ValueError` for parts of units: two writers of one unit would overwrite each other's samples."""
        axes = zip(region, self.unit, self.shape, strict=True)
        if any(part.start % unit or (part.stop % unit and part.stop != size) for part, unit, size in axes):
            raise ValueError(f"parts of '{self.path}' cover whole units of {self.unit}, but {region} does not")

    @abstractmethod
    def finish(self, record: dict[str, Any]) -> None:
        """Put the whole result at `path`, with the record of the run; all parts are there. Raises `FileAccessError`."""

    @abstractmethod
    def _make(self, own: Path) -> None:
        """Make the file, of its final size, under a name."""

    @abstractmethod
    def _open(self, written: Path) -> RegionSource:
        """Open the unfinished or finished file under this name; raises `DeconvError` if it is damaged."""

    def _is_like(self, found: Path, new: Path) -> bool:
        """Check whether the hidden file differs from a new one in its samples alone."""
        if found.is_symlink() or found.is_dir() != new.is_dir():
            return False
        if new.is_file() and not (_has_no_other_name(found) and found.stat().st_size == new.stat().st_size):
            return False
        try:
            kept, made = self._open(found), self._open(new)
        except DeconvError:
            return False
        return all(getattr(kept, name) == getattr(made, name) for name in _OF_HEADER)


def _has_no_other_name(partial: Path) -> bool:
    """Check whether the hidden file is ordinary, and has no name but its own and that under which it is made."""
    inodes = []
    for name in partial.parent.glob(f"{glob.escape(partial.name)}*"):
        with contextlib.suppress(FileNotFoundError):
            inodes.append(name.lstat().st_ino)
    if not os.path.lexists(partial):
        return False
    found = partial.lstat()  # after the others: by now a file that is being made can only lose a name
    return stat.S_ISREG(found.st_mode) and found.st_nlink <= inodes.count(found.st_ino)


def _remove_partial(path: Path) -> None:
    """Remove the hidden file, and files that killed processes left while they made one."""
    hidden = partial_path(path)
    for found in [hidden, *hidden.parent.glob(f"{glob.escape(hidden.name)}-*")]:
        remove(found)


def put_in_place(path: Path) -> None:
    """Rename the hidden file, once the disk has it."""
    atomic.synchronize(partial_path(path))
    atomic.put_in_place(partial_path(path), path)
    _remove_partial(path)


def refusing_to_write(path: Path) -> AbstractContextManager[None]:
    """Turn errors of a disk or a library into a `FileAccessError` of one sentence that names the file."""
    return explaining(f"'{path}' cannot be written")
