"""The optics that an image was taken with, in the fields of OME-XML.

Source: OME data model, schema 2016-06, `Objective`, `ObjectiveSettings` and `Channel`; of dyes Johnson and Spence, The
Molecular Probes handbook, 11th edition, 2010, chapters 1 and 8; of proteins Lambert, FPbase: a community-editable
fluorescent protein database, Nature Methods 16, 2019.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

from deconv_cli.io.image import ImageFile
from deconv_cli.io.metadata import METERS

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
_EMISSIONS = {
    **{"DAPI": 461, "HOECHST": 461, "HOECHST33342": 461, "HOECHST33258": 461},
    **{"CFP": 477, "ECFP": 477, "GFP": 507, "EGFP": 507, "YFP": 527, "EYFP": 527},
    **{"MTURQUOISE2": 474, "MNEONGREEN": 517, "VENUS": 528, "MVENUS": 527},
    **{"TDTOMATO": 581, "DSRED": 583, "TAGRFP": 584, "MSCARLET": 594, "MRFP": 607, "MCHERRY": 610, "MKATE2": 633},
    **{"FITC": 518, "TRITC": 573, "TEXASRED": 615},
    **{"CY3": 565, "CY5": 665, "CY7": 775},
    **{"ALEXA405": 421, "ALEXA488": 519, "ALEXA532": 554, "ALEXA546": 573, "ALEXA555": 565, "ALEXA568": 603},
    **{"ALEXA594": 617, "ALEXA633": 647, "ALEXA647": 668, "ALEXA680": 702, "ALEXA750": 775},
}
"""Emission maxima of dyes in nm, by the name in capitals without spaces and marks."""
_SHORT_ALEXA = re.compile(r"(?:ALEXAFLUOR|AF)(\d{3})")


@dataclass(frozen=True)
class OpticsMetadata:
    """The optics of a file; `None`, or an empty tuple, for fields that it lacks, of a single channel too.

    Attributes:
        numerical_aperture: of the objective.
        immersion_index: refractive index of the immersion.
        n_objectives: number of objectives; if there are several and no aperture, the one that was used is unknown.
        emissions: wavelength in nm that each channel shows.
        excitations: wavelength in nm that excites each channel.
        modes: acquisition mode of each channel, in OME's words.
        dyes: of each channel, in anyone's words.
        has_pinholes: the diameter of a pinhole is known, but not its size in the image.
    """

    numerical_aperture: float | None = None
    immersion_index: float | None = None
    n_objectives: int = 0
    emissions: tuple[float | None, ...] = ()
    excitations: tuple[float | None, ...] = ()
    modes: tuple[str | None, ...] = ()
    dyes: tuple[str | None, ...] = ()
    has_pinholes: bool = False


def read_optics(image: ImageFile) -> OpticsMetadata:
    """Read the optics of a file, without the fields that are not understood."""
    fields = image.native_fields
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
        dyes=_of_channels(fields, "Fluor"),
        has_pinholes=any(_of_channels(fields, "PinholeSize")),
    )


_SETTINGS = "OME ObjectiveSettings and other settings"


def _setting(xml: str, name: str) -> str | None:
    return next((found.get(name) for found in _elements(xml, "ObjectiveSettings")), None)


def _elements(xml: str, name: str) -> list[ElementTree.Element]:
    """Find elements in XML that was parsed, with its entities refused, when the file was read."""
    try:
        return list(ElementTree.fromstring(f"<all>{xml}</all>").iter(name))  # noqa: S314
    except ElementTree.ParseError:
        return []


def _of_channels(fields: dict[str, object], name: str) -> tuple[str | None, ...]:
    """List a field of each channel; empty if no channel has it."""
    given = fields.get(f"OME channel {name}")
    found = tuple(None if text is None else str(text) for text in given) if isinstance(given, list | tuple) else ()
    return found if any(found) else ()


def _wavelengths(fields: dict[str, object], kind: str) -> tuple[float | None, ...]:
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


def emission_of_dye(name: str) -> float | None:
    """Look up the emission maximum of a dye in nm; `None` for an unknown name, and for the names of two dyes.

    Args:
        name: of a channel, for instance `DAPI`, `mCherry`, `Alexa Fluor 488`, `AF488-T2` or `EGFP (low)`.
    """
    words = re.findall(r"[A-Z0-9]+", name.upper())
    # A dye may be written in several words, among others.
    spans = ["".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
    found = {_EMISSIONS.get(_SHORT_ALEXA.sub(r"ALEXA\1", span), 0) for span in spans} - {0}
    return float(found.pop()) if len(found) == 1 else None
