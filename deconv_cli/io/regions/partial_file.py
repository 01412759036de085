"""A file in the making: it has its final size and a hidden name, until it is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deconv_cli.errors import DeconvError, FileAccessError
from deconv_cli.io import atomic
from deconv_cli.io.sources import reason_of


def partial_path(path: Path) -> Path:
    """Name what is written before all is there; the same for every process, and for a later run."""
    return path.with_name(f".{path.name}.partial")


def check_room(path: Path, n_bytes: int) -> None:
    """Refuse by `FileAccessError` what the disk of `path` has no room for."""
    room = shutil.disk_usage(path.parent).free
    if room < n_bytes:
        raise FileAccessError(
            f"'{path}' takes {n_bytes} bytes, but its disk has room for {room}; free some, or choose another disk."
        )


def allocate(descriptor: int, n_bytes: int) -> None:
    """Give a file its final size, reserved on the disk where the system can: a map of a full disk ends a process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, n_bytes)
    else:
        os.ftruncate(descriptor, n_bytes)


def put_in_place(path: Path) -> None:
    """Give what was written its name, once the disk has it."""
    atomic.synchronize(partial_path(path))
    atomic.put_in_place(partial_path(path), path)


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
