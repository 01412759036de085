"""Whether an output can go where a person wants it; asked before anything is computed."""

from __future__ import annotations

import os
from pathlib import Path

from deconv_cli.errors import FileAccessError, UsageError


def check_place(path: Path, source: Path, *, force: bool, make_folder: bool = False) -> Path:
    """Refuse a place where no file can be, or where one is that may not be replaced.

    Args:
        path: the output.
        source: what it is made from.
        force: whether an existing file may be replaced.
        make_folder: whether a missing folder is made when the file is written.

    Returns:
        The folder that it will be written into, or the nearest one that exists.

    Raises:
        UsageError: no such folder, or an existing file without `force`.
    """
    folder = path.parent
    if make_folder:
        folder = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not folder.is_dir():
        raise UsageError(f"the folder '{folder}' of output '{path.name}' does not exist; make it first.")
    if path.is_dir():
        raise UsageError(f"output '{path}' should be a file, but is a folder.")
    if path.exists() and not force:
        is_input = path.samefile(source) if source.exists() else False
        what = "is the input itself" if is_input else "exists already"
        raise UsageError(f"output '{path}' {what}; choose another name or pass --force to replace it.")
    return folder


def check_writable(path: Path, folder: Path) -> None:
    """Refuse a folder that nothing can be written into.

    Raises:
        FileAccessError: no permission.
    """
    if not os.access(folder, os.W_OK):
        raise FileAccessError(f"output '{path}' cannot be written: no permission to write into its folder.")
