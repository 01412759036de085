"""What a file says of the optics that an image was taken with: the fields of OME-XML, as read and carried.

Source: OME data model, schema 2016-06, `Objective`, `ObjectiveSettings` and `Channel`.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

from deconv_cli.io.image import ImageFile

INDICES = {"Oil": 1.515, "Water": 1.333, "WaterDipping": 1.333, "Air": 1.0, "Glycerol": 1.47}
"""Refractive indices of OME's words for an immersion."""
MODES = {
    "WideField": "widefield",
    "LaserScanningConfocalMicroscopy": "confocal",
    "SpinningDiskConfocal": "confocal",
    "MultiPhotonMicroscopy": "two-photon",
    "SPIM": "light-sheet",
}
"""OME's words for how an image was taken, as far as there is a model of them."""
NANOMETERS = {"nm": 1.0, "µm": 1000.0, "pm": 1e-3, "Å": 0.1, "mm": 1e6}


@dataclass(frozen=True)
class OpticsMetadata:
    """What was found; `None`, or an empty tuple, for what the file does not say, of a single channel too.

    Attributes:
        numerical_aperture: of the objective.
        immersion_index: refractive index of the immersion.
        emissions: wavelength in nm that each channel shows.
        excitations: wavelength in nm that excites each channel.
        modes: how each channel was taken.
    """

    numerical_aperture: float | None = None
    immersion_index: float | None = None
    emissions: tuple[float | None, ...] = ()
    excitations: tuple[float | None, ...] = ()
    modes: tuple[str, ...] = ()


def read_optics(image: ImageFile) -> OpticsMetadata:
    """Gather what a file says of its optics; fields that are not understood are as if they were not there."""
    fields = image.native_fields
    objective = _objective(str(fields.get("OME Instrument", "")), settings := str(fields.get(_SETTINGS, "")))
    index = None if objective is None else INDICES.get(objective.get("Immersion", ""))
    given = _attribute(settings, "ObjectiveSettings", "RefractiveIndex")
    modes = tuple(MODES.get(str(word), "") for word in fields.get("OME channel AcquisitionMode", ()))
    return OpticsMetadata(
        numerical_aperture=None if objective is None else _positive(objective.get("LensNA")),
        immersion_index=_positive(given) or index,
        emissions=_wavelengths(fields, "Emission"),
        excitations=_wavelengths(fields, "Excitation"),
        modes=modes if all(modes) else (),
    )


_SETTINGS = "OME ObjectiveSettings and other settings"


def _objective(instruments: str, settings: str) -> dict[str, str] | None:
    """Find the objective that the settings name, or the only one."""
    found = [element.attrib for element in _elements(instruments, "Objective")]
    wanted = _attribute(settings, "ObjectiveSettings", "ID")
    named = [objective for objective in found if objective.get("ID") == wanted]
    return dict(named[0]) if named else dict(found[0]) if len(found) == 1 else None


def _attribute(xml: str, element: str, name: str) -> str | None:
    return next((found.get(name) for found in _elements(xml, element)), None)


def _elements(xml: str, name: str) -> list[ElementTree.Element]:
    """Find elements in XML that was parsed, and its entities refused, when the file was read."""
    try:
        return list(ElementTree.fromstring(f"<all>{xml}</all>").iter(name))  # noqa: S314
    except ElementTree.ParseError:
        return []


def _wavelengths(fields: dict[str, object], kind: str) -> tuple[float | None, ...]:
    """Read the wavelength of each channel in nm; empty where none is known."""
    given = fields.get(f"OME channel {kind}Wavelength")
    units = fields.get(f"OME channel {kind}WavelengthUnit")
    texts = list(given) if isinstance(given, list | tuple) else []
    words = list(units) if isinstance(units, list | tuple) else [None] * len(texts)
    numbers = [_positive(text) for text in texts]
    factors = [NANOMETERS.get(str(word or "nm")) for word in words]
    if len(factors) != len(numbers):
        return ()
    pairs = zip(numbers, factors, strict=True)
    found = tuple(None if number is None or factor is None else number * factor for number, factor in pairs)
    return found if any(found) else ()


def _positive(text: object) -> float | None:
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if 0 < value < 1e9 else None
