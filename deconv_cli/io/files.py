"""Input files: ordinary ones, folders that are one file to their users, as in Zarr, and addresses of Zarr folders.

An address such as s3://bucket/name.zarr goes through the program as a path, which loses one of its two slashes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deconv_cli.errors import (
    DeconvError,
    FileAccessError,
    MalformedInputError,
    TooLargeError,
    UsageError,
    warnings_here,
)

MARKS = ("zarr.json", ".zgroup", ".zarray")
"""Files that mark the folder around them as one file."""
FOLDER = b"folder: "
"""The head of a folder that is one file; the name of the file that marks it follows."""

_TIMES = ("ETag", "etag", "LastModified", "mtime", "updated", "created")
"""Names of the time of a file in the file systems of fsspec."""
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(.+)", re.DOTALL)
"""A scheme has two letters at least: one alone is a drive."""


def open_source(path: Path) -> tuple[bytes, str]:
    """Read the first 32 bytes and the SHA-256 of an input file; raises as `read_head` does."""
    return read_head(path), fingerprint(path)


def read_head(path: Path) -> bytes:
    """Read the first 32 bytes of an input file, fewer if it is shorter; for a folder that is one file see `FOLDER`.

    Raises:
        UsageError: no such file, or an ordinary folder.
        FileAccessError: the file cannot be opened or read.
        MalformedInputError: the file is empty.
    """
    try:
        if address := address_of(path):
            if mark := mark_of(path):
                return FOLDER + mark.encode()
            raise UsageError(
                f"'{address}' holds no Zarr, the only format that deconv reads from an address; check it, or copy the "
                "file to this machine."
            )
        if path.is_dir() and (mark := mark_of(path)):
            return FOLDER + mark.encode()
        if path.is_dir():
            marks = ", ".join(MARKS)
            raise UsageError(
                f"'{path}' should be a file or a Zarr, but is a folder without {marks}; name a file in it."
            )
        if not path.exists():
            what = "is a link to a file that does not exist" if path.is_symlink() else "does not exist"
            raise UsageError(f"'{path}' {what}; check the name and the folder.")
        if not path.is_file():
            raise UsageError(f"'{path}' should be an ordinary file, but is a pipe or a device.")
        with path.open("rb") as stream:
            head = stream.read(32)
    except OSError as error:
        raise FileAccessError(f"'{path}' cannot be read: {reason_of(error)}.") from error
    if not head:
        raise MalformedInputError(f"'{path}' is empty; copy or export it again.")
    return head


def fingerprint(path: Path) -> str:
    """Compute the SHA-256 of all bytes of a file, as 64 hexadecimal digits; of a folder, of all files in it."""
    try:
        if address_of(path) or path.is_dir():
            found = hashlib.sha256()
            for name, *_ in sorted(list_members(path)):
                content = read_member(path / name) or b""
                found.update(f"{name}\0{len(content)}\0".encode(errors="surrogateescape"))
                found.update(content)
            return found.hexdigest()
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise FileAccessError(f"'{path}' cannot be read: {reason_of(error)}.") from error


def read_lines(path: Path) -> str:
    """Read the ASCII text of an earlier run; raises `OSError` for a pipe or a device, whose reading may never end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not an ordinary file")
    return path.read_text(encoding="ascii", errors="replace")


def address_of(path: Path) -> str | None:
    """Return the address that was typed for a path; `None` for a path on the disk."""
    found = _ADDRESS.fullmatch(path.as_posix())
    if found is None or Path(f"{found[1]}:").exists():
        return None
    return f"{found[1]}://{'/' if found[1] in ('file', 'local') else ''}{found[2]}"


def spelled(path: Path) -> str:
    """Write a path as it was typed: an address with both of its slashes."""
    return address_of(path) or str(path)


def mark_of(path: Path) -> str | None:
    """Name the file that marks a folder as one file; raises `FileAccessError` if an address does not answer."""
    return next((mark for mark in MARKS if is_member(path / mark)), None)


def is_one_file(path: Path) -> bool:
    """Check whether a path is one file to its users: an ordinary one, a marked folder, or an address."""
    return address_of(path) is not None or path.is_file() or (path.is_dir() and mark_of(path) is not None)


def is_there(path: Path) -> bool:
    """Check whether there is anything at a path."""
    return path.exists() if address_of(path) is None else mark_of(path) is not None


def refuse_special(path: Path) -> None:
    """Refuse by `UsageError` to replace a pipe or a device by a file."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UsageError(f"'{path}' is a pipe or a device, and no file replaces it; choose another name.")


def is_member(path: Path) -> bool:
    """Check whether a file is there, at an address too."""
    if address_of(path) is None:
        return path.is_file()
    with reaching(path) as (system, place):
        return bool(system.isfile(place))


def read_member(path: Path) -> bytes | None:
    """Read a file of a marked folder; `None` if it is missing."""
    try:
        if address_of(path) is None:
            return path.read_bytes() if path.is_file() else None  # reading a pipe would wait
        with reaching(path) as (system, place):
            content: bytes = system.cat_file(place)
            return content
    except FileNotFoundError:
        return None


def write_member(path: Path, content: bytes) -> None:
    """Write a file of a marked folder, and the folders around it."""
    if address_of(path) is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return
    with reaching(path) as (system, place):
        system.pipe_file(place, content)


def remove(path: Path) -> None:
    """Remove a marked folder or a file, if it is there."""
    if address_of(path) is not None:
        with reaching(path) as (system, place):
            if system.exists(place):
                system.rm(place, recursive=True)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
    """Open the file system of an address; yield it with the place in it.

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
        raise UsageError(f"'{address}' is an address, which needs a missing package: {extra}.") from error
    except ValueError as error:
        raise UsageError(f"'{address}' is not a supported address: {error}.") from error
    try:
        yield system, str(place)
    except (DeconvError, FileNotFoundError):
        raise
    except Exception as error:  # each scheme has a library of its own, with its own errors
        reason = str(error).strip().splitlines()
        raise FileAccessError(f"'{address}' does not answer: {(reason or [type(error).__name__])[0]}.") from error


def options_of(address: str) -> dict[str, Any]:
    """Choose the options by which fsspec makes missing folders, as places without folders do."""
    return {"auto_mkdir": True} if address.startswith(("file:", "local:")) else {}


_NO_SPACE = re.compile(r"\d+ requested and \d+ written")
"""NumPy's message on a full disk."""
_OBJECT = re.compile(r"<[A-Za-z_][\w.]*(?: [^<>]*)?>:?\s*")
_SLIPS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError)
"""Errors of a codec that trusts a damaged file; their messages are about its code."""
_CODE = re.compile(r"\w_\w|\bb'|[=<>{}\[\]\\]|\('|\w+Error\b|\b(?:argument|buffer|dtype|object|reshape|unpack)\b")
"""Marks of a message about the code of a codec, which a person who reads it cannot act on."""


def reason_of(error: BaseException) -> str:
    """Shorten an error's message to its first line, without its final stop and without the objects of Python in it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    if _NO_SPACE.fullmatch(lines[0]):
        return os.strerror(errno.ENOSPC)
    return _OBJECT.sub("", lines[0]).strip().rstrip(".:")[:200] or type(error).__name__


@contextmanager
def refusing_damage(path: Path, format_name: str) -> Iterator[None]:
    """Turn every error or warning of a codec into one sentence that names the file.

    Hostile bytes make a codec raise anything at all, so everything is caught here.

    Raises:
        TooLargeError: the codec ran out of memory.
        MalformedInputError: any other failure of the codec.
    """
    try:
        with warnings_here("error"):
            yield
    except DeconvError:
        raise
    except MemoryError as error:
        raise TooLargeError(f"'{path}' needs more memory than there is; crop or split it first.") from error
    except (Exception, RecursionError) as error:
        reason = "its parts contradict one another" if isinstance(error, _SLIPS) else reason_of(error)
        why = re.sub(r"\s*\([^()]*\)", "", reason) if _CODE.search(reason) else reason
        why = "" if _CODE.search(why) or why == type(error).__name__ else f" ({why})"
        raise MalformedInputError(
            f"'{path}' cannot be read as {format_name}{why}; it is damaged, cut short or of an unsupported kind."
        ) from error
