"""Input files: ordinary ones, and folders that are one file to their users, as in Zarr."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/.+", re.DOTALL)
"""Matches a URL after `Path` has removed one slash. A scheme has at least two letters: one alone is a drive."""


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
    refuse_address(path)
    with explaining(f"'{path}' cannot be read"):
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
    if not head:
        raise MalformedInputError(f"'{path}' is empty; copy or export it again.")
    return head


def fingerprint(path: Path) -> str:
    """Compute the SHA-256 of all bytes of a file, as 64 hexadecimal digits; of a folder, of all files in it."""
    with explaining(f"'{path}' cannot be read"):
        if path.is_dir():
            found = hashlib.sha256()
            for name, *_ in sorted(list_members(path)):
                content = read_member(path / name) or b""
                found.update(f"{name}\0{len(content)}\0".encode(errors="surrogateescape"))
                found.update(content)
            return found.hexdigest()
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def read_lines(path: Path) -> str:
    """Read the ASCII text of an earlier run; raises `OSError` for a pipe or a device, whose reading may never end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not an ordinary file")
    return path.read_text(encoding="ascii", errors="replace")


def refuse_address(path: Path, *, is_output: bool = False) -> None:
    """Refuse a URL such as s3://bucket/name.zarr by `UsageError`."""
    if _ADDRESS.fullmatch(path.as_posix()) and not path.exists():
        address = path.as_posix().replace(":/", ":///" if path.as_posix().startswith("file:") else "://", 1)
        advice = "choose a path on this machine" if is_output else "copy it here"
        raise UsageError(
            f"'{address}' is an address, and deconv works on files of this machine; {advice}, or mount it as a folder."
        )


def mark_of(path: Path) -> str | None:
    """Name the file that marks a folder as one file; `None` for other paths."""
    return next((mark for mark in MARKS if (path / mark).is_file()), None)


def is_one_file(path: Path) -> bool:
    """Check whether a path is one file to its users: an ordinary one or a marked folder."""
    return path.is_file() or mark_of(path) is not None


def refuse_special(path: Path) -> None:
    """Refuse by `UsageError` to replace a pipe or a device by a file."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UsageError(f"'{path}' is a pipe or a device, and no file replaces it; choose another name.")


def read_member(path: Path) -> bytes | None:
    """Read a file of a marked folder; `None` if it is missing."""
    try:
        return path.read_bytes() if path.is_file() else None  # reading a pipe would wait
    except FileNotFoundError:
        return None


N_REMOVALS, SECONDS_BETWEEN_REMOVALS = 20, 0.05
"""A folder is removed again while threads of zarr, whose write failed, still put chunks into it."""


def remove(path: Path) -> None:
    """Remove a marked folder or a file, if it is there."""
    if path.is_dir() and not path.is_symlink():
        for _ in range(N_REMOVALS):
            shutil.rmtree(path, ignore_errors=True)
            time.sleep(SECONDS_BETWEEN_REMOVALS)
            if not path.exists():
                return
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def list_members(path: Path) -> Iterator[tuple[str, int, int]]:
    """List all files below a folder with their sizes and their times in nanoseconds."""
    for file in path.rglob("*"):
        if not file.is_file() and not file.is_dir():
            raise FileAccessError(f"'{file}' should be a file, but is a pipe, a device or a link to nothing.")
        if file.is_file():
            found = file.stat()
            yield file.relative_to(path).as_posix(), found.st_size, found.st_mtime_ns


_OBJECT = re.compile(r"<[A-Za-z_][\w.]*(?: [^<>]*)?>:?\s*")
_SLIPS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError)
"""Errors of a codec that trusts a damaged file; their messages are about its code."""


def reason_of(error: BaseException) -> str:
    """Shorten an error's message to its first line, without its final stop and without the objects of Python in it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = next(iter(str(error).strip().splitlines()), "")
    if re.fullmatch(r"\d+ requested and \d+ written", first):  # by NumPy, on a full disk
        return os.strerror(errno.ENOSPC)
    return _OBJECT.sub("", first).strip().rstrip(".:")[:200] or type(error).__name__


@contextmanager
def explaining(failure: str) -> Iterator[None]:
    """Turn an error of a disk or a library into a `FileAccessError`: the failure, as a clause, and the reason."""
    try:
        yield
    except DeconvError:
        raise
    except (OSError, ValueError) as error:
        raise FileAccessError(f"{failure}: {reason_of(error)}.") from error


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
        reason = reason.replace(f" '{path}'", "").replace(f" {path}", "")  # a name shows nothing about the damage
        raise MalformedInputError(
            f"'{path}' cannot be read as {format_name} ({reason}); it is damaged, incomplete or of an unsupported kind."
        ) from error
