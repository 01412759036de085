"""EXIF blocks: the orientation is reset in place, everything else stays byte for byte."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Exif

_ORIENTATION = 0x0112
_MARKER = b"Exif\x00\x00"
_USER_COMMENT = 0x9286
_EXIF_DIRECTORY = 0x8769
_ASCII = b"ASCII\x00\x00\x00"

TEXT_TAGS = {0x010F: "Make", 0x0110: "Model", 0x0132: "DateTime", 0x013B: "Artist", 0x8298: "Copyright"}
"""Texts of the first directory that other formats can hold too."""


def without_marker(block: bytes | None) -> bytes | None:
    """Give an EXIF block in TIFF form, or None without one."""
    bare = (block or b"").removeprefix(_MARKER)
    return bare or None


def with_marker(block: bytes) -> bytes:
    """Give an EXIF block as JPEG and WebP store it."""
    return _MARKER + block


def read_orientation(block: bytes | None) -> int:
    """Read the orientation, 1 to 8; 1 where there is none."""
    place = _orientation_place(block or b"")
    if place is None or block is None:
        return 1
    order, offset = place
    found = int(struct.unpack_from(order + "H", block, offset)[0])
    return found if 1 <= found <= 8 else 1


def upright(block: bytes) -> bytes:
    """Set the orientation to 1, for samples that have been turned."""
    place = _orientation_place(block)
    if place is None:
        return block
    order, offset = place
    return block[:offset] + struct.pack(order + "H", 1) + block[offset + 2 :]


def _orientation_place(block: bytes) -> tuple[str, int] | None:
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 8:
        return None
    try:
        start = struct.unpack_from(order + "I", block, 4)[0]
        n_entries = struct.unpack_from(order + "H", block, start)[0]
        for entry in range(start + 2, start + 2 + 12 * n_entries, 12):
            if struct.unpack_from(order + "HH", block, entry) == (_ORIENTATION, 3):
                struct.unpack_from(order + "H", block, entry + 8)
                return order, entry + 8
    except struct.error:
        return None
    return None


def read_texts(block: bytes | None) -> dict[str, str]:
    """Read the texts of `TEXT_TAGS` that a block holds."""
    directory = _load(block)
    return {name: str(directory[tag]) for tag, name in TEXT_TAGS.items() if tag in directory}


def block_of_texts(texts: dict[str, str]) -> bytes | None:
    """Make a block of the texts that have a tag, or None if none has."""
    directory = _load(None)
    for tag, name in TEXT_TAGS.items():
        if name in texts:
            directory[tag] = texts[name]
    return without_marker(directory.tobytes()) if len(directory) else None


def read_comment(block: bytes | None) -> str | None:
    """Read the user comment."""
    comment = _load(block).get_ifd(_EXIF_DIRECTORY).get(_USER_COMMENT)
    if not isinstance(comment, bytes):
        return None
    return comment.removeprefix(_ASCII).decode("utf-8", "replace")


def with_comment(block: bytes | None, comment: str) -> bytes:
    """Set the user comment. The directories are written anew, all their tags kept."""
    directory = _load(block)
    directory.get_ifd(_EXIF_DIRECTORY)[_USER_COMMENT] = _ASCII + comment.encode("utf-8")
    return directory.tobytes().removeprefix(_MARKER)


def _load(block: bytes | None) -> Exif:
    from PIL import Image

    directory = Image.Exif()
    if block:
        directory.load(with_marker(block))
    return directory
