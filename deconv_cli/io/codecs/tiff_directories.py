"""The directories of a TIFF file, walked before tifffile reads them: a few damaged bytes must not cost minutes.

Source: TIFF Revision 6.0, Adobe, 1992, section 2; BigTIFF, https://www.awaresystems.be/imaging/tiff/bigtiff.html.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

from deconv_cli.errors import MalformedInputError

_MAX_TAGS = 4096
"""Of one directory; tifffile draws the same line."""

_MAX_READS = 4
"""How often every byte of the file may belong to a directory or to a value of a tag, on average."""

_SUBDIRECTORIES = (330, 34665, 34853, 40965)
"""SubIFDs, Exif, GPS and Interoperability."""

_VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""By data type."""

_CLASSIC, _BIG = ("I", "H", "HHI4s"), ("Q", "Q", "HHQ8s")
"""Formats of an offset, a number of tags, and a tag: its code, data type, count, and value or the offset of it."""


def check_directories(path: Path) -> None:
    """Refuse a file whose directories come in a circle, or promise far more than the file holds.

    Raises:
        MalformedInputError: they do, or one of them lies beyond the end.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        n_left = _MAX_READS * len(data)
        for n_bytes in _walk(path, data):
            n_left -= n_bytes
            if n_left < 0:
                raise _damaged(path, "its directories promise more than it holds")


def _walk(path: Path, data: mmap.mmap) -> Iterator[int]:
    """Go through all tags of all directories; gives how many bytes each takes with its value."""
    order, is_big = "<" if data[:2] == b"II" else ">", b"+" in data[2:4]
    offset, n_tags, tag = (struct.Struct(order + form) for form in (_BIG if is_big else _CLASSIC))
    following, inner = offset.unpack_from(data, 8 if is_big else 4)[0], list[int]()
    seen: set[int] = set()
    while following or inner:
        place, is_inner = (inner.pop(), True) if inner else (following, False)
        if place in seen or place + n_tags.size > len(data):
            if is_inner:
                continue
            raise _damaged(path, "its directories come in a circle or lie beyond its end")
        seen.add(place)
        (n,) = n_tags.unpack_from(data, place)
        end = place + n_tags.size + n * tag.size
        if n > _MAX_TAGS or end + offset.size > len(data):
            raise _damaged(path, f"a directory of {n} tags does not fit into it")
        if not is_inner:
            (following,) = offset.unpack_from(data, end)
        for code, kind, count, value in tag.iter_unpack(data[place + n_tags.size : end]):
            n_value_bytes = count * _VALUE_BYTES.get(kind, 0)
            yield tag.size + n_value_bytes
            if code in _SUBDIRECTORIES:
                inner += _offsets(data, offset, n_value_bytes, value)


def _offsets(data: mmap.mmap, offset: struct.Struct, n_bytes: int, value: bytes) -> list[int]:
    """Read the offsets that stand in a tag, or where the tag points."""
    start = offset.unpack(value)[0]
    stored = value[:n_bytes] if n_bytes <= len(value) else data[start : start + n_bytes]
    whole = stored[: len(stored) // offset.size * offset.size]
    return [number for (number,) in offset.iter_unpack(whole) if number]


def _damaged(path: Path, why: str) -> MalformedInputError:
    return MalformedInputError(f"'{path}' should be a whole TIFF file, but {why}; copy or export it again.")
