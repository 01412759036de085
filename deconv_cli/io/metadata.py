"""The metadata of an image: one record that every codec fills as far as it can read, and writes as far as it can."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from deconv_cli.io import records

if TYPE_CHECKING:
    from PIL.Image import Exif

METERS = {
    **dict.fromkeys(("inch", "in"), Fraction(254, 10**4)),
    **dict.fromkeys(("centimeter", "cm"), Fraction(1, 100)),
    **{"m": Fraction(1), "mm": Fraction(1, 10**3), "nm": Fraction(1, 10**9), "pm": Fraction(1, 10**12)},
    # The sign for micro and the Greek letter, the letter and the sign for an angstrom.
    **dict.fromkeys(("\u00b5m", "\u03bcm", "um"), Fraction(1, 10**6)),
    **dict.fromkeys(("\u00c5", "\u212b"), Fraction(1, 10**10)),
}
"""Length of each unit of a resolution, in the words of TIFF and OME."""


@dataclass(frozen=True)
class Resolution:
    """Pixels per unit of length along the columns (`x`) and the rows (`y`); the inverse of the pixel size."""

    x: Fraction
    y: Fraction
    unit: str
    """A key of `METERS`, or empty where the unit is not known."""
    plane_distance: Fraction | None = None
    """Distance of two planes along Z, in the same unit."""

    def transposed(self) -> Resolution:
        """Exchange rows and columns."""
        return replace(self, x=self.y, y=self.x)

    def per(self, unit: str) -> Resolution:
        """Convert to another unit, if the own unit is known."""
        if not self.unit:
            return self
        factor = METERS[unit] / METERS[self.unit]
        distance = None if self.plane_distance is None else self.plane_distance / factor
        return Resolution(self.x * factor, self.y * factor, unit, distance)


@dataclass(frozen=True)
class Metadata:
    """Everything that a file stores about its image besides the samples. Every field may be empty."""

    resolution: Resolution | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    """A whole EXIF block with the leading marker, as Pillow reads and writes it."""
    channel_names: tuple[str, ...] = ()
    native: dict[str, Any] = field(default_factory=dict)
    """Fields that only files of the same format can hold, by their names in notes."""
    native_of_channels: dict[str, Any] = field(default_factory=dict)
    """Likewise, but true only as long as the channels are the same."""
    flavor: str = ""
    """`imagej` or `ome` for TIFF files of these kinds, `ome-zarr` for such a Zarr."""
    unsupported: tuple[str, ...] = ()
    """Names of fields that are never carried over."""


EXIF_TEXTS = {271: "Make", 272: "Model", 306: "DateTime", 315: "Artist", 316: "HostComputer", 33432: "Copyright"}
"""Texts of the first directory of EXIF, which are tags of a TIFF file too."""

_MARKER = b"Exif\x00\x00"
_ORIENTATION = 274
_EXIF_DIRECTORY, _USER_COMMENT = 34665, 37510
_ASCII = b"ASCII\x00\x00\x00"


def split_exif(block: bytes | None) -> tuple[bytes | None, int, dict[str, Any] | None]:
    """Take the orientation and the record of a run out of an EXIF block.

    Returns:
        The block with its marker, for upright samples, byte for byte the same if it held neither; the orientation, 1 to
        8; and the record.
    """
    if not block:
        return None, 1, None
    block = _MARKER + block.removeprefix(_MARKER)
    directory = _load(block)
    orientation = directory.get(_ORIENTATION, 1)
    if orientation != 1:
        directory[_ORIENTATION] = 1
        block = directory.tobytes()
    comment = _comment(directory)
    record = records.take_line(comment)
    if record is not None:
        block = _with_comment(directory, records.drop_line(comment))
    is_valid = isinstance(orientation, int) and 1 <= orientation <= 8
    return block, orientation if is_valid else 1, record


def exif_texts(block: bytes | None) -> dict[int, str]:
    """Read the texts of `EXIF_TEXTS` that a block holds, by tag."""
    directory = _load(block)
    return {tag: str(directory[tag]) for tag in EXIF_TEXTS if tag in directory}


def has_other_exif(block: bytes | None) -> bool:
    """Check whether a block holds more than the orientation and the texts of `EXIF_TEXTS`."""
    from PIL.ExifTags import IFD

    directory = _load(block)
    inner = (directory.get_ifd(IFD.Exif), directory.get_ifd(IFD.GPSInfo))
    return any(inner) or bool(set(directory) - {*EXIF_TEXTS, _ORIENTATION, IFD.Exif, IFD.GPSInfo})


def exif_of_texts(texts: dict[int, str]) -> bytes | None:
    """Make a block of texts by tag; `None` without any."""
    directory = _load(None)
    directory.update(texts)
    return directory.tobytes() if texts else None


def put_record(block: bytes | None, record: dict[str, Any]) -> bytes:
    """Add the record of a run to the user comment of an EXIF block, as a line of its own."""
    directory = _load(block)
    return _with_comment(directory, records.put_line(_comment(directory), records.encode_record(record)))


def _comment(directory: Exif) -> str:
    found = directory.get_ifd(_EXIF_DIRECTORY).get(_USER_COMMENT)
    return found.removeprefix(_ASCII).decode("utf-8", "replace") if isinstance(found, bytes) else ""


def _with_comment(directory: Exif, comment: str) -> bytes:
    """Write the directories with another user comment, and all other tags; an empty comment is dropped."""
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
