"""An unfinished file that several processes write into: it has its final size and a hidden name, until it is whole."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import shutil
import stat
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deconv_cli.errors import DeconvError, FileAccessError
from deconv_cli.io import atomic
from deconv_cli.io.atomic import partial_path
from deconv_cli.io.files import reason_of
from deconv_cli.io.regions import RegionTarget


@dataclass(frozen=True, eq=False)
class PartialFile(RegionTarget):
    """An array in one unfinished file, whose writers change its samples alone."""

    def create(self) -> bool:
        """Make the hidden file, of its final size."""
        with refusing_to_write(self.path):
            return make_partial(self.path, self.n_bytes, self._without_samples, self._make)

    def is_begun(self) -> bool:
        """Look for the hidden file."""
        return partial_path(self.path).exists()

    def discard(self) -> None:
        """Remove the hidden file."""
        with refusing_to_write(self.path):
            _remove_partial(self.path)

    @abstractmethod
    def _make(self, own: Path) -> None:
        """Make the file, of its final size, under a name."""

    @abstractmethod
    def _without_samples(self, new: Path) -> list[tuple[int, int]]:
        """List the parts of a new file, first byte and end, that hold no samples."""

    @property
    def _written(self) -> Path:
        """The unfinished file, or the result where that is in its place."""
        return partial_path(self.path) if self.is_begun() else self.path


def make_partial(
    path: Path, n_bytes: int, parts_of: Callable[[Path], list[tuple[int, int]]], make: Callable[[Path], None]
) -> bool:
    """Make the hidden file, unless an earlier run or another process did; return whether it was there already.

    Args:
        path: of the result.
        n_bytes: size of the result.
        parts_of: lists the parts of a new file, first byte and end, that hold no samples. A hidden file that differs
            from a new one in these parts is removed, and so is a link, a pipe or a device.
        make: makes a new one, of its final size, under another name.

    Raises:
        FileAccessError: the disk has too little room.
    """
    partial = partial_path(path)
    own = partial.with_name(f"{partial.name}-{secrets.token_hex(4)}")
    try:
        make(own)
        # A hidden file has its final size from the start, so that one which differs belongs to another run.
        if _has_no_other_name(partial) and _is_like(partial, own, parts_of(own)):
            return True
        partial.unlink(missing_ok=True)
        room = shutil.disk_usage(path.parent).free
        if room < n_bytes:
            raise FileAccessError(
                f"'{path}' takes {n_bytes} bytes, but its disk has room for {room}; free some, or choose another disk."
            )
        atomic.name_new(own, partial)
    except FileExistsError:
        return True  # of several processes the first one wins, and may have written into its file already
    finally:
        own.unlink(missing_ok=True)
    # If a file is mapped and the disk is full, the process ends.
    if hasattr(os, "posix_fallocate"):
        with partial.open("rb+") as stream:
            os.posix_fallocate(stream.fileno(), 0, partial.stat().st_size)
    return False


def _is_like(found: Path, new: Path, parts: list[tuple[int, int]]) -> bool:
    """Check whether two files are of one size and alike in some parts."""
    with found.open("rb") as one, new.open("rb") as other:
        return found.stat().st_size == new.stat().st_size and all(
            one.seek(start) == other.seek(start) and one.read(stop - start) == other.read(stop - start)
            for start, stop in parts
        )


def _has_no_other_name(partial: Path) -> bool:
    """Check whether the hidden file is ordinary, and has no name but its own and that under which it is made."""
    if not os.path.lexists(partial):
        return False
    inodes = []
    for name in partial.parent.glob(f"{glob.escape(partial.name)}*"):
        with contextlib.suppress(FileNotFoundError):
            inodes.append(name.lstat().st_ino)
    found = partial.lstat()  # after the others: by now a file that is being made can only lose a name
    return stat.S_ISREG(found.st_mode) and found.st_nlink <= inodes.count(found.st_ino)


def _remove_partial(path: Path) -> None:
    """Remove the hidden file, and files that killed processes left while they made one."""
    hidden = partial_path(path)
    for found in [hidden, *hidden.parent.glob(f"{glob.escape(hidden.name)}-*")]:
        found.unlink(missing_ok=True)


def put_in_place(path: Path) -> None:
    """Rename the hidden file, once the disk has it."""
    atomic.synchronize(partial_path(path))
    atomic.put_in_place(partial_path(path), path)
    _remove_partial(path)


@contextmanager
def refusing_to_write(path: Path) -> Iterator[None]:
    """Turn errors of a disk or a library into a `FileAccessError` of one sentence that names the file."""
    try:
        yield
    except DeconvError:
        raise
    except (OSError, ValueError) as error:
        raise FileAccessError(f"'{path}' cannot be written: {reason_of(error)}.") from error
