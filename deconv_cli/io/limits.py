"""How much a file may ask for: no header is believed before it is compared with the file and the memory."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import psutil

from deconv_cli.errors import MalformedInputError, TooLargeError
from deconv_cli.vocabulary import format_memory

MAX_RATIO = 2000
"""Decoded bytes per stored byte beyond which a large file is taken for a decompression bomb."""

RATIO_FREE_BYTES = 64 * 2**20
"""Below this size a file may be compressed as well as it likes."""

MAX_VIEW_BYTES = 64 * 2**20
"""A stored tensor that repeats its samples (a stride of zero) may unfold to this many bytes."""


def memory_budget() -> int:
    """Give the number of bytes that one decoded file may take: half of the physical memory."""
    return int(psutil.virtual_memory().total) // 2


def check_budget(path: Path, n_bytes: int) -> None:
    """Refuse content that does not fit half of the memory.

    Raises:
        TooLargeError: `n_bytes` exceeds the budget.
    """
    budget = memory_budget()
    if n_bytes > budget:
        raise TooLargeError(
            f"'{path}' asks for {format_memory(n_bytes)} once decoded, but at most {format_memory(budget)} "
            "(half of the memory) may be used; crop or split it first."
        )


def check_expansion(path: Path, n_decoded: int, n_stored: int) -> None:
    """Refuse content that is too large, or that unfolds as only a decompression bomb does.

    Args:
        path: named in the error.
        n_decoded: bytes after decoding, as the header promises.
        n_stored: bytes in the file.

    Raises:
        TooLargeError: over the budget, or over `MAX_RATIO` decoded bytes per stored byte.
    """
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
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError, EOFError) as error:
        raise MalformedInputError(
            f"'{path}' should be a whole archive, but its directory cannot be read; the file is cut short or damaged."
        ) from error
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise MalformedInputError(f"'{path}' holds two entries of the same name, which no honest writer makes.")
    check_expansion(path, sum(entry.file_size for entry in entries), path.stat().st_size)
    return names
