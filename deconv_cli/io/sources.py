"""Opening an input file: whether it exists and may be read, its first bytes, and its SHA-256."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deconv_cli.errors import DeconvError, FileAccessError, MalformedInputError, TooLargeError, UsageError
from deconv_cli.io.folders import MARKS, address_of, folder_digest, mark_of
from deconv_cli.thread_warnings import warnings_here

FOLDER = b"folder: "
"""In the place of the first bytes of a folder that is one file; the name of the file that says so comes behind it."""


def open_source(path: Path) -> tuple[bytes, str]:
    """Read the first 32 bytes and the SHA-256 of an input file; raises as `read_head` does."""
    return read_head(path), fingerprint(path)


def fingerprint(path: Path) -> str:
    """Compute the SHA-256 of all bytes of a file, as 64 hexadecimal digits; of a folder, of all files in it."""
    try:
        if address_of(path) or path.is_dir():
            return folder_digest(path)
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise FileAccessError(f"'{path}' cannot be read: {reason_of(error)}.") from error


def read_lines(path: Path) -> str:
    """Read the ASCII text of an earlier run; raises `OSError` for a pipe or a device, whose reading may never end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not an ordinary file")
    return path.read_text(encoding="ascii", errors="replace")


def read_head(path: Path) -> bytes:
    """Read the first 32 bytes of an input file, fewer if it is shorter; for a folder that is one file see `FOLDER`.

    Raises:
        UsageError: no such file, or an ordinary folder.
        FileAccessError: the file cannot be opened or read.
        MalformedInputError: the file is empty.
    """
    try:
        if address_of(path):
            return _head_of_address(path)
        if path.is_dir() and (mark := mark_of(path)):
            return FOLDER + mark.encode()
        if path.is_dir():
            marks = ", ".join(MARKS)
            raise UsageError(
                f"'{path}' should be a file, but is a folder, and no Zarr, which would hold one of {marks}; name a "
                "file in it."
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


def _head_of_address(path: Path) -> bytes:
    mark = mark_of(path)
    if mark is None:
        raise UsageError(
            f"'{address_of(path)}' holds no Zarr, which is all that is read from an address; check it, or copy the "
            "file here."
        )
    return FOLDER + mark.encode()


_NO_SPACE = re.compile(r"\d+ requested and \d+ written")
"""What NumPy says of a full disk."""
_RAISED = re.compile(r"^.* raised \w+\((['\"])(.*)\1\)")
_CAUSE = re.compile(r", due to \w+\(.*")
_CLASS = re.compile(r"<class '([\w.]+)'>")
_OBJECT = re.compile(r"<[A-Za-z_][\w.]*(?: [^<>]*)?>:?\s*")

_SLIPS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError)
"""What a codec stumbles into that takes what a damaged file says for granted; their messages are about its code."""


def reason_of(error: BaseException) -> str:
    """Give the first line of an error's message, without its final stop, and without objects as Python writes them."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    if _NO_SPACE.fullmatch(lines[0]):
        return os.strerror(errno.ENOSPC)
    line = _RAISED.sub(r"\2", lines[0])
    line = _OBJECT.sub("", _CAUSE.sub("", _CLASS.sub(r"\1", line)))
    return line.strip().rstrip(".:")[:200] or type(error).__name__


@contextmanager
def refusing_damage(path: Path, format_name: str) -> Iterator[None]:
    """Turn whatever a codec raises or warns about into one sentence that names the file.

    A codec that stumbles over hostile bytes raises anything at all, so everything is caught here.

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
        raise MalformedInputError(
            f"'{path}' cannot be read as {format_name} ({reason}); it is damaged, cut short or of a "
            "kind not understood here."
        ) from error
