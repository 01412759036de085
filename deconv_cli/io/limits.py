"""How much a file may ask for: no header is believed before it is compared with the file and the memory."""

from __future__ import annotations

import functools
import math
import zipfile
from collections.abc import Iterable
from pathlib import Path

import psutil

from deconv_cli.errors import MalformedInputError, TooLargeError
from deconv_cli.vocabulary import format_memory

MAX_RATIO = 256
"""Decoded bytes per stored byte beyond which a large file is taken for a decompression bomb. Deflate ends at 1032."""

RATIO_FREE_BYTES = 64 * 2**20
"""Below this size a file may be compressed as well as it likes."""

MAX_VIEW_BYTES = 64 * 2**20
"""A stored tensor that repeats its samples (a stride of zero) may unfold to this many bytes."""

_MAX_BYTES = 2**70
"""Larger promises are all alike; numbers of thousands of digits fit no message."""


@functools.cache
def memory_budget() -> int:
    """Give the number of bytes that one decoded file may take: half of the physical memory."""
    return int(psutil.virtual_memory().total) // 2


def array_bytes(shape: Iterable[int], itemsize: int) -> int:
    """Give the bytes of an array, 2⁷⁰ at most, whatever numbers a header holds."""
    return min(math.prod(int(size) for size in shape) * itemsize, _MAX_BYTES)


def check_budget(path: Path, n_bytes: int) -> None:
    """Refuse by `TooLargeError` content that does not fit half of the memory."""
    budget = memory_budget()
    if n_bytes > budget:
        raise TooLargeError(
            f"'{path}' asks for {format_memory(min(n_bytes, _MAX_BYTES))} once decoded, but at most "
            f"{format_memory(budget)} (half of the memory) may be used; crop or split it first."
        )


def check_expansion(path: Path, n_decoded: int, n_stored: int, *, by_parts: bool = False) -> None:
    """Refuse by `TooLargeError` content that is too large, or that unfolds as only a decompression bomb does.

    `n_decoded` are the bytes that the header promises, `n_stored` those in the file. What is read `by_parts` may be
    larger than the memory.
    """
    if not by_parts:
        check_budget(path, n_decoded)
    if n_decoded > RATIO_FREE_BYTES and n_decoded > MAX_RATIO * max(n_stored, 1):
        raise TooLargeError(
            f"'{path}' promises {format_memory(n_decoded)} out of {format_memory(n_stored)}, more than {MAX_RATIO} "
            "to 1 as only a decompression bomb does; save it again with less compression if it is genuine."
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
    # The module raises what it stumbles over: BadZipFile, struct.error, ValueError, NotImplementedError, ...
    except Exception as error:
        raise MalformedInputError(
            f"'{path}' should be a whole archive, but its directory cannot be read; the file is cut short or damaged."
        ) from error
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise MalformedInputError(f"'{path}' holds two entries of the same name, which no honest writer makes.")
    check_expansion(path, sum(entry.file_size for entry in entries), path.stat().st_size)
    return names
