"""Folders that are one file to their users, as Zarr's are: on the disk, or at an address such as s3://bucket/name.zarr.

An address goes through the program as a path, which loses one of its two slashes and gets it back here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deconv_cli.errors import DeconvError, FileAccessError, UsageError

MARKS = ("zarr.json", ".zgroup", ".zarray")
"""Files that say of the folder around them that it is one file."""

_TIMES = ("ETag", "etag", "LastModified", "mtime", "updated", "created")
"""Under which the file systems of fsspec say when a file was written."""
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(.+)", re.DOTALL)
"""A scheme has two letters at least: one alone is a drive."""


def address_of(path: Path) -> str | None:
    """Give the address that a path stands for; `None` where it is one of the disk."""
    found = _ADDRESS.fullmatch(path.as_posix())
    if found is None or Path(f"{found[1]}:").exists():
        return None
    return f"{found[1]}://{'/' if found[1] in ('file', 'local') else ''}{found[2]}"


def mark_of(path: Path) -> str | None:
    """Name the file that says that a folder is one file; `None` where there is none, or no folder.

    Raises:
        FileAccessError: the address does not answer.
    """
    return next((mark for mark in MARKS if is_member(path / mark)), None)


def is_one_file(path: Path) -> bool:
    """Return whether a path is that of a file to its users: an ordinary one, a folder that is one, or an address."""
    return address_of(path) is not None or path.is_file() or (path.is_dir() and mark_of(path) is not None)


def is_there(path: Path) -> bool:
    """Return whether there is anything at a path."""
    return path.exists() if address_of(path) is None else mark_of(path) is not None


def refuse_special(path: Path) -> None:
    """Refuse by `UsageError` to put a file in the place of a pipe or a device."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UsageError(f"'{path}' is a pipe or a device, and no file replaces it; choose another name.")


def spelled(path: Path) -> str:
    """Write a path as it was typed: an address with both of its slashes."""
    return address_of(path) or str(path)


def is_member(path: Path) -> bool:
    """Return whether a file is there, at an address too."""
    if address_of(path) is None:
        return path.is_file()
    with reaching(path) as (system, place):
        return bool(system.isfile(place))


def read_member(path: Path) -> bytes | None:
    """Read a file of such a folder; `None` where there is none."""
    try:
        if address_of(path) is None:
            return path.read_bytes() if path.is_file() else None  # a pipe would be waited for
        with reaching(path) as (system, place):
            content: bytes = system.cat_file(place)
            return content
    except FileNotFoundError:
        return None


def write_member(path: Path, content: bytes) -> None:
    """Write a file of such a folder, and the folders around it."""
    if address_of(path) is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return
    with reaching(path) as (system, place):
        system.pipe_file(place, content)


def remove(path: Path) -> None:
    """Remove such a folder, or a file of one, where it is there."""
    if address_of(path) is not None:
        with reaching(path) as (system, place):
            if system.exists(place):
                system.rm(place, recursive=True)
    elif path.is_dir() and not path.is_symlink():
        import shutil

        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def folder_digest(path: Path) -> str:
    """Hash the names and the contents of all files below a folder."""
    found = hashlib.sha256()
    for name, *_ in sorted(list_members(path)):
        content = read_member(path / name) or b""
        found.update(f"{name}\0{len(content)}\0".encode(errors="surrogateescape"))
        found.update(content)
    return found.hexdigest()


def list_members(path: Path) -> Iterator[tuple[str, int, str]]:
    """List all files below a folder with sizes and times; of an address that lists nothing, those that mark it."""
    if address_of(path) is None:
        for file in path.rglob("*"):
            if not file.is_file() and not file.is_dir():
                raise FileAccessError(f"'{file}' should be a file, but is a pipe, a device or a link to nothing.")
            if file.is_file():
                found = file.stat()
                yield file.relative_to(path).as_posix(), found.st_size, str(found.st_mtime_ns)
        return
    with reaching(path) as (system, place):
        listed = system.find(place, detail=True)
    for name, info in listed.items():
        within = str(name).rpartition(place.strip("/"))[2].lstrip("/")
        yield within, int(info.get("size") or 0), str([info.get(time) for time in _TIMES])
    if not listed:
        yield from ((mark, 0, "") for mark in MARKS if is_member(path / mark))


@contextmanager
def reaching(path: Path) -> Iterator[tuple[Any, str]]:
    """Give the file system of an address, and the place in it.

    Raises:
        UsageError: a package is missing, or the scheme is unknown.
        FileNotFoundError: nothing is there.
        FileAccessError: it does not answer, or refuses.
    """
    address = address_of(path) or str(path)
    try:
        import fsspec

        system, place = fsspec.core.url_to_fs(address, **options_of(address))
    except ImportError as error:
        extra = "pip install 'deconv-cli[zarr]'" if getattr(error, "name", "") == "fsspec" else str(error)
        raise UsageError(f"'{address}' is an address, for which a package is missing: {extra}.") from error
    except ValueError as error:
        raise UsageError(f"'{address}' is no address that is understood: {error}.") from error
    try:
        yield system, str(place)
    except (DeconvError, FileNotFoundError):
        raise
    # Each scheme has a library of its own, which raises what it likes.
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise FileAccessError(f"'{address}' does not answer: {(reason or [type(error).__name__])[0]}.") from error


def options_of(address: str) -> dict[str, Any]:
    """Give the options by which fsspec makes folders where they are missing, as places without folders do."""
    return {"auto_mkdir": True} if address.startswith(("file:", "local:")) else {}
