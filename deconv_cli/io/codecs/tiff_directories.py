"""The directories of a TIFF file, walked before tifffile reads them: a few damaged bytes must not cost minutes.

Source: TIFF Revision 6.0, Adobe, 1992, section 2; BigTIFF, https://www.awaresystems.be/imaging/tiff/bigtiff.html.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from deconv_cli.errors import MalformedInputError

_MAX_TAGS = 4096
"""Of one directory; tifffile draws the same line."""

_MAX_READS = 4
"""How often every byte of the file may belong to a directory or to a value of a tag, on average."""

_SUBDIRECTORIES = (330, 34665, 34853, 40965)
"""SubIFDs, Exif, GPS and Interoperability."""

_VALUE_BYTES = {
    **dict.fromkeys((1, 2, 6, 7), 1),
    **dict.fromkeys((3, 8), 2),
    **dict.fromkeys((4, 9, 11, 13), 4),
    **dict.fromkeys((5, 10, 12, 16, 17, 18), 8),
}
"""By data type."""


_CLASSIC, _BIG = ("I", "H", "HHI4s"), ("Q", "Q", "HHQ8s")
"""Formats of an offset, a number of tags, and a tag: its code, data type, count, and value or the offset of it."""


def check_directories(path: Path) -> None:
    """Refuse a file whose directories come in a circle, or promise far more than the file holds.

    Raises:
        MalformedInputError: they do, or one of them lies beyond the end.
    """
    n_bytes = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(4)
        walk = _Walk(path, stream, "<" if head[:2] == b"II" else ">", _BIG if b"+" in head else _CLASSIC)
        stream.seek(8 if b"+" in head else 4)
        offset, seen = walk.read_number(walk.offset), set()
        while offset:
            if offset in seen or offset >= n_bytes:
                raise _damaged(path, "its directories come in a circle or lie beyond its end")
            seen.add(offset)
            subdirectories, offset = walk.read_directory(offset)
            while subdirectories:
                inner = subdirectories.pop()
                if inner not in seen and 0 < inner < n_bytes:
                    seen.add(inner)
                    subdirectories += walk.read_directory(inner)[0]


class _Walk:
    """Reads directories of one file, and adds up how many bytes they and their values take."""

    def __init__(self, path: Path, stream: BinaryIO, order: str, formats: tuple[str, str, str]) -> None:
        self._path = path
        self._stream = stream
        self._left = _MAX_READS * path.stat().st_size
        self.offset, self._n_tags, self._tag = (struct.Struct(order + form) for form in formats)

    def read_number(self, form: struct.Struct) -> int:
        """Read the next number."""
        stored = self._stream.read(form.size)
        if len(stored) < form.size:
            raise _damaged(self._path, "it is cut short")
        return int(form.unpack(stored)[0])

    def read_directory(self, offset: int) -> tuple[list[int], int]:
        """Read one directory; gives the offsets of its subdirectories, and of the directory that follows, or 0."""
        self._stream.seek(offset)
        n_tags = self.read_number(self._n_tags)
        if n_tags > _MAX_TAGS:
            raise _damaged(self._path, f"one of its directories has {n_tags} tags")
        tags = self._stream.read(n_tags * self._tag.size)
        following = self.read_number(self.offset)
        self._take(len(tags))
        subdirectories: list[int] = []
        for code, kind, count, value in self._tag.iter_unpack(tags):
            n_value_bytes = count * _VALUE_BYTES.get(kind, 0)
            self._take(n_value_bytes)
            if code in _SUBDIRECTORIES and n_value_bytes:
                subdirectories += self._numbers(n_value_bytes, value)
        return subdirectories, following

    def _numbers(self, n_value_bytes: int, value: bytes) -> Iterator[int]:
        """Read offsets that stand in a tag, or where the tag points."""
        if n_value_bytes > len(value):
            self._stream.seek(int(self.offset.unpack(value)[0]))
            value = self._stream.read(n_value_bytes)
        whole = len(value) // self.offset.size * self.offset.size
        return (int(number) for (number,) in self.offset.iter_unpack(value[:whole]))

    def _take(self, n_bytes: int) -> None:
        self._left -= n_bytes
        if self._left < 0:
            raise _damaged(self._path, "its directories promise more than it holds")


def _damaged(path: Path, why: str) -> MalformedInputError:
    return MalformedInputError(f"'{path}' should be a whole TIFF file, but {why}; copy or export it again.")
