"""Whether an output can be written where it is meant to go; asked before anything is computed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from deconv_cli.errors import FileAccessError, UsageError
from deconv_cli.io.atomic import write_atomically
from deconv_cli.io.folders import address_of, mark_of, refuse_special
from deconv_cli.io.sources import reason_of


def check_output_path(
    path: Path, source: Path, *, force: bool | None, make_folder: bool = False, is_folder: bool = False
) -> None:
    """Refuse a path where no file can be, or where one is that may not be replaced.

    Where `force` is `None` the caller will find out what is there. `force` never allows to replace the input, a pipe or
    a device. With `make_folder` a missing folder is made when the file is written. `source` is what the output is made
    from. Where `is_folder`, files of the format are folders themselves.

    Raises:
        UsageError: no such folder, an existing file without `force`, the input itself, a pipe or a device.
        FileAccessError: no permission to write into the folder, or a name that the file system does not take.
    """
    if address_of(path):
        _check_address(path, is_left_open=force is None, is_folder=is_folder)
        return
    try:
        folder = path.parent
        if make_folder:
            folder = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not folder.is_dir():
            raise UsageError(f"the folder '{folder}' of output '{path.name}' does not exist; make it first.")
        with contextlib.suppress(FileNotFoundError):
            (folder / path.name).lstat()  # where the folder is missing, the name may still be too long
        if path.is_dir() and not (is_folder and mark_of(path)):
            raise UsageError(f"output '{path}' should be a file, but is a folder.")
        refuse_special(path)
        if path.exists() and source.exists() and path.samefile(source):
            raise UsageError(f"output '{path}' is the input itself, which is never replaced; choose another name.")
        if force is False and path.exists():
            raise UsageError(f"output '{path}' exists already; choose another name, or force=True to replace it.")
    except OSError as error:
        raise FileAccessError(f"output '{path}' cannot be written: {reason_of(error)}.") from error
    if not os.access(folder, os.W_OK):
        raise FileAccessError(f"output '{path}' cannot be written: no permission to write into its folder.")


def make_parents(path: Path) -> None:
    """Make the folders around a file that are missing; raises `FileAccessError` where they cannot be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileAccessError(f"the folder of '{path}' cannot be made: {reason_of(error)}.") from error


def _check_address(path: Path, *, is_left_open: bool, is_folder: bool) -> None:
    address = address_of(path)
    if not is_folder:
        raise UsageError(f"output '{address}' is an address, where only Zarr is written; choose a name with .zarr.")
    if not is_left_open and mark_of(path):
        raise UsageError(f"output '{address}' exists already, and nothing is replaced there; choose another name.")


SUFFIXES = (".html", ".htm")


def check_page_path(path: Path, source: Path, *, force: bool) -> None:
    """Refuse a path where no page can be written, as `check_output_path` does, or of another suffix."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"the page '{path}' should end in .html.")
    check_output_path(path, source, force=force)


def write_page(path: Path, text: str) -> None:
    """Write a page; an existing file is replaced.

    Raises:
        FileAccessError: disk full, no permission, or the file does not read back.
    """
    # As bytes: the page names its own script by its hash, which another line ending would change. File names may hold
    # what is no letter at all.
    content = text.encode("utf-8", errors="replace")

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    def check(temporary: Path) -> None:
        if temporary.read_bytes() != content:
            raise ValueError("some bytes differ")

    write_atomically(path, write, check)
