"""EXIF blocks by Pillow: the orientation, texts that TIFF stores as tags of its own, and a record as user comment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deconv_cli.io import records

if TYPE_CHECKING:
    from PIL.Image import Exif

MARKER = b"Exif\x00\x00"

TEXT_TAGS = {
    271: "Make",
    272: "Model",
    306: "DateTime",
    315: "Artist",
    316: "HostComputer",
    33432: "Copyright",
}
"""Texts of the first directory, which are tags of a TIFF file too."""

_ORIENTATION = 274
_EXIF_DIRECTORY, _USER_COMMENT = 34665, 37510
_ASCII = b"ASCII\x00\x00\x00"
_MAX_NAMES = 8


def with_marker(block: bytes | None) -> bytes | None:
    """Give an EXIF block as `Metadata` has it, or None without one."""
    return MARKER + block.removeprefix(MARKER) if block else None


def read_orientation(block: bytes | None) -> int:
    """Read the orientation, 1 to 8; 1 where there is none."""
    found = _load(block).get(_ORIENTATION, 1)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def upright(block: bytes) -> bytes:
    """Set the orientation to 1, for samples that have been turned; a block without one stays byte for byte."""
    directory = _load(block)
    if directory.get(_ORIENTATION, 1) == 1:
        return block
    directory[_ORIENTATION] = 1
    return directory.tobytes()


def read_texts(block: bytes | None) -> dict[int, str]:
    """Read the texts of `TEXT_TAGS` that a block holds, by tag."""
    directory = _load(block)
    return {tag: str(directory[tag]) for tag in TEXT_TAGS if tag in directory}


def describe_other_tags(block: bytes) -> str:
    """Name what a block holds besides the orientation and the texts of `TEXT_TAGS`; empty where that is nothing."""
    from PIL.ExifTags import GPSTAGS, IFD, TAGS

    directory = _load(block)
    codes = set(directory) - {*TEXT_TAGS, _ORIENTATION, _EXIF_DIRECTORY, IFD.GPSInfo}
    names = [TAGS.get(code, f"tag {code}") for code in (*codes, *directory.get_ifd(_EXIF_DIRECTORY))]
    names += [GPSTAGS.get(code, f"GPS tag {code}") for code in directory.get_ifd(IFD.GPSInfo)]
    more = f" and {len(names) - _MAX_NAMES} more tags" if len(names) > _MAX_NAMES else ""
    return f"EXIF {', '.join(names[:_MAX_NAMES])}{more}" if names else ""


def block_of_texts(texts: dict[int, str]) -> bytes | None:
    """Make a block of texts by tag, or None without any."""
    directory = _load(None)
    directory.update(texts)
    return directory.tobytes() if texts else None


def take_record(block: bytes | None) -> tuple[dict[str, Any] | None, bytes | None]:
    """Take the record of a run, a line of the user comment, out of a block."""
    directory = _load(block)
    comment = _comment(directory)
    if records.take_line(comment) is None:
        return None, block
    return records.take_line(comment), _with_comment(directory, records.drop_line(comment))


def put_record(block: bytes | None, record: dict[str, Any]) -> bytes:
    """Add the record of a run to the user comment of a block, as a line of its own."""
    directory = _load(block)
    return _with_comment(directory, records.put_line(_comment(directory), records.encode_record(record)))


def _comment(directory: Exif) -> str:
    found = directory.get_ifd(_EXIF_DIRECTORY).get(_USER_COMMENT)
    return found.removeprefix(_ASCII).decode("utf-8", "replace") if isinstance(found, bytes) else ""


def _with_comment(directory: Exif, comment: str) -> bytes:
    """Write the directories anew with another user comment, all other tags kept; an empty one is left out."""
    inner = directory.get_ifd(_EXIF_DIRECTORY)
    inner.pop(_USER_COMMENT, None)
    if comment:
        inner[_USER_COMMENT] = _ASCII + comment.encode("utf-8")
    return directory.tobytes()


def _load(block: bytes | None) -> Exif:
    from PIL import Image

    directory = Image.Exif()
    if block:
        directory.load(block)
    return directory
