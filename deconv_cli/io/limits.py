"""Limits of memory: every header is compared with the file and the memory before anything is allocated."""

from __future__ import annotations

import functools
import math
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import psutil

from deconv_cli.errors import MalformedInputError, TooLargeError
from deconv_cli.vocabulary import format_memory

SMALL_FILE_BYTES = 4 * 2**20
FREE_BYTES = 72 * 2**20
"""Decoded bytes of a small file, however well it is compressed: 24 million pixels of 8 bits in three colors."""

MAX_RATIO = 256
"""Decoded bytes for each byte that a file is larger. Deflate ends at 1032."""

PART_BYTES = 6 * 2**10
"""A chunk, strip, page, scan or entry takes at least the time of this many decoded bytes."""

_MAX_BYTES = 2**70
"""Larger promises are cut to this; numbers of thousands of digits fit no message."""

_ALLOWED: ContextVar[int] = ContextVar("allowed", default=0)


@contextmanager
def allowing(n_bytes: int | None) -> Iterator[None]:
    """Allow every file that this thread reads to unfold to `n_bytes`, also a small one that is compressed well."""
    token = _ALLOWED.set(n_bytes or 0)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


@functools.cache
def memory_budget() -> int:
    """Return the bytes that one decoded file may take: half of the physical memory."""
    return int(psutil.virtual_memory().total) // 2


def most_bytes(n_stored: int) -> int:
    """Compute the bytes that a file of `n_stored` bytes may unfold to."""
    return max(FREE_BYTES + MAX_RATIO * max(n_stored - SMALL_FILE_BYTES, 0), _ALLOWED.get())


def array_bytes(shape: Iterable[int], itemsize: int) -> int:
    """Compute the bytes of an array, 2⁷⁰ at most, whatever numbers a header holds."""
    return min(math.prod(int(size) for size in shape) * itemsize, _MAX_BYTES)


def check_budget(path: Path, n_bytes: int) -> None:
    """Refuse by `TooLargeError` content that does not fit half of the memory."""
    budget = memory_budget()
    if n_bytes > budget:
        raise TooLargeError(
            f"'{path}' needs {format_memory(min(n_bytes, _MAX_BYTES))} after decoding, but at most "
            f"{format_memory(budget)} (half of the memory) may be used; crop or split it first."
        )


def check_expansion(path: Path, n_decoded: int, n_stored: int, *, n_parts: int = 0, by_parts: bool = False) -> None:
    """Refuse by `TooLargeError` content that is too large, or that unfolds as a decompression bomb does.

    `n_decoded` are the bytes that the header promises, `n_stored` those in the file, `n_parts` the pieces that are
    decoded one by one. An array that is read `by_parts` may be larger than the memory.
    """
    if not by_parts:
        check_budget(path, n_decoded)
    if by_parts and _ALLOWED.get():
        return
    n_parts = min(n_parts, _MAX_BYTES)
    if max(n_decoded, n_parts * PART_BYTES) > most_bytes(n_stored):
        promised = f"{n_parts:.6g} parts" if n_parts * PART_BYTES > n_decoded else format_memory(n_decoded)
        raise TooLargeError(
            f"'{path}' promises {promised} out of {format_memory(n_stored)}, like a decompression bomb; if it is "
            "genuine, restore it with a larger max_memory, or save it in larger parts or less compressed."
        )


def check_zip(path: Path) -> list[str]:
    """Check the sizes that a zip archive promises, and list its entries.

    Raises:
        MalformedInputError: not a whole zip archive, or entries that repeat.
        TooLargeError: the entries are too large together, or a decompression bomb.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    # The module raises BadZipFile, struct.error, ValueError, NotImplementedError, ...
    except Exception as error:
        raise MalformedInputError(
            f"'{path}' should be an archive, but its directory cannot be read; the file is cut short or damaged."
        ) from error
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise MalformedInputError(f"'{path}' holds two entries of the same name, which no normal writer makes.")
    check_expansion(path, sum(entry.file_size for entry in entries), path.stat().st_size, n_parts=len(entries))
    return names
