"""The metadata of an image; EXIF blocks; the optics in OME-XML.

A codec reads it into `StoredImage.metadata`, and `ImageFile.metadata` keeps it. `Codec.choose_metadata` chooses the
fields that another format has, and `Codec.write` writes them.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
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
class PixelDensity:
    """The pixel size, kept as its inverse: pixels per unit of length along the columns (`x`) and the rows (`y`)."""

    x: Fraction
    y: Fraction
    unit: str
    """A key of `METERS`, or empty where the unit is not known."""
    plane_distance: Fraction | None = None
    """Distance of two planes along Z, in the same unit."""

    def transposed(self) -> PixelDensity:
        """Exchange rows and columns."""
        return replace(self, x=self.y, y=self.x)

    def per(self, unit: str) -> PixelDensity:
        """Convert to another unit, if the own unit is known."""
        if not self.unit:
            return self
        factor = METERS[unit] / METERS[self.unit]
        distance = None if self.plane_distance is None else self.plane_distance / factor
        return PixelDensity(self.x * factor, self.y * factor, unit, distance)


@dataclass(frozen=True)
class Metadata:
    """Everything that a file stores about its image besides the samples. Every field may be empty."""

    density: PixelDensity | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    """A whole EXIF block with the leading marker, as Pillow reads and writes it."""
    channel_names: tuple[str, ...] = ()
    native: Mapping[str, object] = field(default_factory=dict)
    """Fields that only files of the same format can hold, by their names in notes."""
    native_of_channels: Mapping[str, object] = field(default_factory=dict)
    """Likewise, but true only as long as the channels are the same."""
    flavor: str = ""
    """`imagej` or `ome` for TIFF files of these kinds, `ome-zarr` for such a Zarr."""
    unsupported: tuple[str, ...] = ()
    """Names of fields that are never carried over."""


EXIF_TEXTS = {271: "Make", 272: "Model", 306: "DateTime", 315: "Artist", 316: "HostComputer", 33432: "Copyright"}
"""Texts of the first directory of EXIF, which are tags of a TIFF file too."""

_MARKER = b"Exif\x00\x00"
_ORIENTATION, _SOFTWARE = 274, 305


def split_exif(block: bytes | None) -> tuple[bytes | None, int, dict[str, Any] | None]:
    """Take the orientation and the record of a run out of an EXIF block.

    Returns:
        The block with its marker, for upright samples, byte for byte the same if it held neither; the orientation, 1 to
        8; and the record, which is in the tag of the writing program.
    """
    if not block:
        return None, 1, None
    block = _MARKER + block.removeprefix(_MARKER)
    directory = _load(block)
    orientation, record = directory.get(_ORIENTATION, 1), records.take_line(directory.get(_SOFTWARE))
    if orientation != 1:
        directory[_ORIENTATION] = 1
    if record is not None:
        del directory[_SOFTWARE]
    if orientation != 1 or record is not None:
        block = directory.tobytes()
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
    """Name this program, with the record of a run, as the writing program of an EXIF block."""
    directory = _load(block)
    directory[_SOFTWARE] = records.put_line("", records.encode_record(record))
    return directory.tobytes()


def _load(block: bytes | None) -> Exif:
    from PIL import Image

    directory = Image.Exif()
    if block:
        directory.load(block)
    return directory


FITS_HEADER = "FITS header"
"""The native field of a FITS file, the cards of its header, one a line."""


def header_number(fields: Mapping[str, object], *keywords: str) -> float | None:
    """Read the first of some keywords of a FITS header that has a positive number; `None` if there is none."""
    header = str(fields.get(FITS_HEADER, ""))
    cards = (re.search(rf"^{word:8}= *'?([^\s'/]+)", header, re.MULTILINE) for word in keywords)
    return next((number for card in cards if card is not None and (number := _positive(card[1]))), None)


INDICES = {"Oil": 1.515, "Water": 1.333, "WaterDipping": 1.333, "Air": 1.0, "Glycerol": 1.47}
"""Refractive indices of OME's words for an immersion."""
MODES = {
    "WideField": "widefield",
    "LaserScanningConfocalMicroscopy": "confocal",
    "SpinningDiskConfocal": "confocal",
    "MultiPhotonMicroscopy": "two-photon",
    "SPIM": "light-sheet",
}
"""OME's acquisition modes that there is a model of."""


@dataclass(frozen=True)
class OpticsMetadata:
    """The optics of a file; `None`, or an empty tuple, for fields that it lacks for any channel.

    Attributes:
        numerical_aperture: of the objective.
        immersion_index: refractive index of the immersion.
        n_objectives: number of objectives; if there are several and no aperture, the one that was used is unknown.
        emissions: wavelength in nm that each channel shows.
        excitations: wavelength in nm that excites each channel.
        modes: acquisition mode of each channel, in OME's words.
        has_pinholes: the diameter of a pinhole is known, but not its size in the image.
    """

    numerical_aperture: float | None = None
    immersion_index: float | None = None
    n_objectives: int = 0
    emissions: tuple[float | None, ...] = ()
    excitations: tuple[float | None, ...] = ()
    modes: tuple[str | None, ...] = ()
    has_pinholes: bool = False


def read_optics(fields: Mapping[str, object]) -> OpticsMetadata:
    """Read the optics from the native fields of a file, as far as OME-XML defines them.

    Source: OME data model, schema 2016-06, `Objective`, `ObjectiveSettings` and `Channel`.
    """
    settings = str(fields.get(_SETTINGS, ""))
    objectives = [element.attrib for element in _elements(str(fields.get("OME Instrument", "")), "Objective")]
    wanted = _setting(settings, "ID")
    named = [found for found in objectives if found.get("ID") == wanted]
    objective = named[0] if named else objectives[0] if len(objectives) == 1 else {}
    media = (objective.get("Immersion"), _setting(settings, "Medium"))
    given = _setting(settings, "RefractiveIndex")
    return OpticsMetadata(
        numerical_aperture=_positive(objective.get("LensNA")),
        immersion_index=_positive(given) or next((INDICES[str(medium)] for medium in media if medium in INDICES), None),
        n_objectives=len(objectives),
        emissions=_wavelengths(fields, "Emission"),
        excitations=_wavelengths(fields, "Excitation"),
        modes=_of_channels(fields, "AcquisitionMode"),
        has_pinholes=any(_of_channels(fields, "PinholeSize")),
    )


_SETTINGS = "OME ObjectiveSettings and other settings"


def _setting(xml: str, name: str) -> str | None:
    return next((found.get(name) for found in _elements(xml, "ObjectiveSettings")), None)


def _elements(xml: str, name: str) -> list[ElementTree.Element]:
    """Find elements in XML; the reader of the file has parsed it before, and refused entities."""
    try:
        return list(ElementTree.fromstring(f"<all>{xml}</all>").iter(name))  # noqa: S314
    except ElementTree.ParseError:
        return []


def _of_channels(fields: Mapping[str, object], name: str) -> tuple[str | None, ...]:
    """List a field of each channel; empty if no channel has it."""
    given = fields.get(f"OME channel {name}")
    found = tuple(None if text is None else str(text) for text in given) if isinstance(given, list | tuple) else ()
    return found if any(found) else ()


def _wavelengths(fields: Mapping[str, object], kind: str) -> tuple[float | None, ...]:
    """Read the wavelength of each channel in nm; empty if none is known."""
    texts = _of_channels(fields, f"{kind}Wavelength")
    units = _of_channels(fields, f"{kind}WavelengthUnit") or (None,) * len(texts)
    if len(units) != len(texts):
        return ()
    numbers = [_positive(text) for text in texts]
    found = tuple(
        float(number * (METERS[unit or "nm"] / METERS["nm"])) if number and (unit or "nm") in METERS else None
        for number, unit in zip(numbers, units, strict=True)
    )
    return found if any(found) else ()


def _positive(text: object) -> float | None:
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if 0 < value < 1e9 else None
