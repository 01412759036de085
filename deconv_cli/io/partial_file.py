"""A file in the making: it has its final size and a hidden name, until it is whole."""

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
from deconv_cli.io.hidden_names import partial_path
from deconv_cli.io.regions import RegionTarget
from deconv_cli.io.sources import reason_of

PartsOf = Callable[[Path], list[tuple[int, int]]]


def check_room(path: Path, n_bytes: int) -> None:
    """Refuse by `FileAccessError` what the disk of `path` has no room for."""
    room = shutil.disk_usage(path.parent).free
    if room < n_bytes:
        raise FileAccessError(
            f"'{path}' takes {n_bytes} bytes, but its disk has room for {room}; free some, or choose another disk."
        )


def make_partial(path: Path, n_bytes: int, parts_of: PartsOf, make: Callable[[Path], None]) -> bool:
    """Make the hidden file, unless an earlier run or another process did; gives whether it was there already.

    Args:
        path: where the result will be.
        n_bytes: that it will take.
        parts_of: lists the parts of a new file, first byte and end, that hold no samples. A hidden file that differs
            from a new one there is removed, and so is a link, a pipe or a device.
        make: makes a new one, of its final size, under another name.

    Raises:
        FileAccessError: the disk has too little room.
    """
    partial = partial_path(path)
    own = partial.with_name(f"{partial.name}-{secrets.token_hex(4)}")
    try:
        make(own)
        # A file of this name was whole from the start, so that one which is not right is of another run.
        if _has_no_other_name(partial) and _is_like(partial, own, parts_of(own)):
            return True
        partial.unlink(missing_ok=True)
        check_room(path, n_bytes)
        os.link(own, partial)
    except FileExistsError:
        return True  # of several processes the first one wins, and may have written into its file already
    finally:
        own.unlink(missing_ok=True)
    # A map of a file without room on the disk ends a process.
    if hasattr(os, "posix_fallocate"):
        with partial.open("rb+") as stream:
            os.posix_fallocate(stream.fileno(), 0, partial.stat().st_size)
    return False


def _is_like(found: Path, new: Path, parts: list[tuple[int, int]]) -> bool:
    """Tell whether two files are of one size and alike in some parts."""
    with found.open("rb") as one, new.open("rb") as other:
        return found.stat().st_size == new.stat().st_size and all(
            one.seek(start) == other.seek(start) and one.read(stop - start) == other.read(stop - start)
            for start, stop in parts
        )


def _has_no_other_name(partial: Path) -> bool:
    """Tell whether the hidden file is an ordinary one, known by its name alone or by that under which it is made."""
    if not os.path.lexists(partial):
        return False
    inodes = []
    for name in partial.parent.glob(f"{glob.escape(partial.name)}*"):
        with contextlib.suppress(FileNotFoundError):
            inodes.append(name.lstat().st_ino)
    found = partial.lstat()  # after the others: by now a file that is being made can only lose a name
    return stat.S_ISREG(found.st_mode) and found.st_nlink <= inodes.count(found.st_ino)


def remove_partial(path: Path) -> None:
    """Remove the hidden file, and what a process that was killed while it made one left."""
    hidden = partial_path(path)
    for found in [hidden, *hidden.parent.glob(f"{glob.escape(hidden.name)}-*")]:
        found.unlink(missing_ok=True)


def put_in_place(path: Path) -> None:
    """Give what was written its name, once the disk has it."""
    atomic.synchronize(partial_path(path))
    atomic.put_in_place(partial_path(path), path)
    remove_partial(path)


@contextmanager
def refusing_to_write(path: Path) -> Iterator[None]:
    """Turn what a disk or a library refuses into one sentence that names the file.

    Raises:
        FileAccessError: it cannot be written.
    """
    try:
        yield
    except DeconvError:
        raise
    except (OSError, ValueError) as error:
        raise FileAccessError(f"'{path}' cannot be written: {reason_of(error)}.") from error


@dataclass(frozen=True, eq=False)
class PartialFile(RegionTarget):
    """An array in one file in the making, whose writers change its samples alone."""

    def create(self) -> bool:
        """Make the hidden file, with all the room that it will need."""
        with refusing_to_write(self.path):
            return make_partial(self.path, self.n_bytes, self._without_samples, self._make)

    def is_begun(self) -> bool:
        """Look for the hidden file."""
        return partial_path(self.path).exists()

    def discard(self) -> None:
        """Remove the hidden file."""
        with refusing_to_write(self.path):
            remove_partial(self.path)

    @abstractmethod
    def _make(self, own: Path) -> None:
        """Make the file, of its final size, under a name."""

    @abstractmethod
    def _without_samples(self, new: Path) -> list[tuple[int, int]]:
        """List the parts of a new file, first byte and end, that hold no samples."""

    @property
    def _written(self) -> Path:
        """The file in the making, or the result where that is in its place."""
        return partial_path(self.path) if self.is_begun() else self.path
