"""OME's kind of TIFF: the fields of its XML that are read, carried and written, and the place of the record.

Source: OME data model, schema 2016-06.
"""

from __future__ import annotations

import html
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from fractions import Fraction
from typing import Any

from deconv_cli.io import limits, records
from deconv_cli.io.metadata import METERS, Metadata, PixelDensity

WRITABLE_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
AXES = "TZCYXS"
PREFIX = "OME "
"""Of its fields among `Metadata.native`; those of channels begin with `OME channel `."""
SIGNIFICANT_BITS = f"{PREFIX}SignificantBits"

_CHANNEL_PREFIX = f"{PREFIX}channel "
_PLAIN_FIELDS = ("TimeIncrement", "TimeIncrementUnit", "SignificantBits")
_INSTRUMENTS, _SETTINGS = f"{PREFIX}Instrument", f"{PREFIX}ObjectiveSettings and other settings"
_SETTINGS_ELEMENTS = ("InstrumentRef", "ObjectiveSettings", "ImagingEnvironment", "StageLabel")
"""Elements of an image that stand between its description and its pixels, in this order."""
_WRITTEN_ANEW = ("ID", "Name", "SamplesPerPixel")
"""Fields of a channel that tifffile writes itself, or that are metadata of any format."""
_STRUCTURE = {"OME", "Image", "Pixels", "Channel", "TiffData", "UUID", "LightPath", "BinData", "Description"}
_LIGHT = {"Wavelength": "ExcitationWavelength", "WavelengthUnit": "ExcitationWavelengthUnit"}
_CARRIED = {"AcquisitionDate", "Instrument", *_SETTINGS_ELEMENTS}
_ANNOTATION = {"StructuredAnnotations", "MapAnnotation", "Value", "M", "AnnotationRef"}
_NAMESPACE = "deconv"
_UNIT = "µm"


def parse(xml: str) -> ElementTree.Element:
    """Parse OME-XML, without namespaces; raises `ValueError` for entities, and for text that is not XML."""
    # Entities are the bombs of XML, and OME-XML never needs one.
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise ValueError("its OME description declares XML entities, which deconv does not open")
    try:
        root = ElementTree.fromstring(xml)  # noqa: S314  (entities are refused before)
    except ElementTree.ParseError as error:
        raise ValueError("its OME description is not XML") from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def n_samples_described(root: ElementTree.Element) -> list[int]:
    """Compute SizeX × SizeY × SizeC × SizeZ × SizeT of every image."""
    sizes = [[int(pixels.get(f"Size{letter}", "0")) for letter in "XYCZT"] for pixels in root.iter("Pixels")]
    return [limits.array_bytes(size, 1) for size in sizes]


def read_fields(
    root: ElementTree.Element, index: int, metadata: Metadata
) -> tuple[Metadata, dict[str, Any] | None, tuple[str, ...]]:
    """Add the fields of one image to the metadata of the tags; return the record and notes, too."""
    images = root.findall("Image")
    if index >= len(images):
        raise ValueError(f"it describes {len(images)} OME images, fewer than it holds")
    image = images[index]
    found = image.find("Pixels")
    pixels = ElementTree.Element("Pixels") if found is None else found
    channels = [_fields_of_channel(channel, root) for channel in pixels.findall("Channel")]
    settings = [element for name in _SETTINGS_ELEMENTS for element in image.findall(name)]
    texts = {
        f"{PREFIX}Name": image.get("Name"),
        **{PREFIX + name: image.findtext(name) for name in ("Description", "AcquisitionDate")},
        _INSTRUMENTS: _as_text(root.findall("Instrument")),
        _SETTINGS: _as_text(settings),
        **{PREFIX + name: pixels.get(name) for name in _PLAIN_FIELDS},
    }
    fields = dict.fromkeys(name for channel in channels for name in channel if name not in _WRITTEN_ANEW)
    names = tuple(channel["Name"] for channel in channels if "Name" in channel)
    sizes = {letter: _size(pixels, letter) for letter in "XYZ"}
    density = _density(sizes)
    if density is None and sizes["Z"]:  # planes have a distance even where the pixel size is missing
        texts |= {PREFIX + name: pixels.get(name) for name in ("PhysicalSizeZ", "PhysicalSizeZUnit")}
    inside = {element for kept in _CARRIED for parent in root.iter(kept) for element in parent.iter()}
    unknown = {element.tag for element in root.iter() if element not in inside} - _STRUCTURE - _ANNOTATION
    bad_sizes = [
        f"PhysicalSize{a}" for a, size in sizes.items() if size is None and f"PhysicalSize{a}" in pixels.attrib
    ]
    unsupported = [*(f"OME element {name}" for name in sorted(unknown)), *(PREFIX + name for name in bad_sizes)]
    complete = replace(
        metadata,
        density=density or metadata.density,
        channel_names=names if len(names) == len(channels) else (),
        native={**metadata.native, **{name: text for name, text in texts.items() if text}},
        native_of_channels={_CHANNEL_PREFIX + name: [channel.get(name) for channel in channels] for name in fields},
        flavor="ome",
        unsupported=(*metadata.unsupported, *unsupported),
    )
    return complete, _record(root), _size_notes(sizes, is_stack=pixels.get("SizeZ", "1") != "1")


def _fields_of_channel(channel: ElementTree.Element, root: ElementTree.Element) -> dict[str, str]:
    """Read the fields of a channel; if it has no excitation of its own, take that of its light source."""
    fields = channel.attrib
    settings = channel.find("LightSourceSettings")
    if settings is None or "ExcitationWavelength" in fields:
        return fields
    lasers = [laser for laser in root.iter("Laser") if laser.get("ID") == settings.get("ID")]
    light = next((source for source in (settings, *lasers) if "Wavelength" in source.attrib), settings)
    return fields | {own: light.attrib[name] for name, own in _LIGHT.items() if name in light.attrib}


def _size_notes(sizes: dict[str, Fraction | None], *, is_stack: bool) -> tuple[str, ...]:
    """Note which pixel sizes were assumed because the OME description lacks them."""
    missing = [letter for letter in ("XYZ" if is_stack else "XY") if sizes[letter] is None]
    if not missing or not any(sizes.values()):
        return ()
    assumed = ["pixels are assumed to be square"] if ("X" in missing) != ("Y" in missing) else []
    if _density(sizes) is None or "Z" in missing:
        assumed.append("stacks are assumed to have equal distances along all axes")
    names = " and ".join(f"PhysicalSize{letter}" for letter in missing)
    return (f"the OME description has no {names}, so that {' and '.join(assumed)}",)


def fields_to_write(metadata: Metadata, record: str) -> dict[str, Any]:
    """List the fields of a file by tifffile's names, the record as a map annotation."""
    fields: dict[str, Any] = size_fields(metadata.density)
    own = {name: value for name, value in metadata.native.items() if name not in (_INSTRUMENTS, _SETTINGS)}
    fields |= {name.removeprefix(PREFIX): value for name, value in own.items() if name.startswith(PREFIX)}
    columns: dict[str, Any] = {"Name": list(metadata.channel_names)} if metadata.channel_names else {}
    columns |= {name.removeprefix(_CHANNEL_PREFIX): values for name, values in metadata.native_of_channels.items()}
    if columns:
        rows = zip(*columns.values(), strict=True)
        fields["Channel"] = [
            {name: value for name, value in zip(columns, row, strict=True) if value is not None} for row in rows
        ]
    return fields | {"MapAnnotation": {"Namespace": _NAMESPACE, records.KEYWORD: record}}


def with_instruments(xml: str, metadata: Metadata) -> str:
    """Add the elements that tifffile does not write to its description of one image."""
    for name, place in ((_INSTRUMENTS, "<Image "), (_SETTINGS, "<Pixels ")):
        before, found, after = xml.partition(place)
        xml = f"{before}{metadata.native.get(name, '')}{found}{after}"
    return xml


def with_record(xml: str, record: dict[str, Any]) -> str:
    """Replace the record in a description, at the place that `fields_to_write` chose."""
    start, end = f'<M K="{records.KEYWORD}">', "</M>"
    before, _, after = xml.partition(start)
    return f"{before}{start}{html.escape(records.encode_record(record), quote=False)}{end}{after.partition(end)[2]}"


def _as_text(elements: list[ElementTree.Element]) -> str:
    """Write elements as XML, without references to annotations, which are not carried."""
    for element in elements:
        for parent in element.iter():
            for child in parent.findall("AnnotationRef"):
                parent.remove(child)
    return "".join(ElementTree.tostring(element, encoding="unicode").strip() for element in elements)


def size_fields(density: PixelDensity | None) -> dict[str, Any]:
    """List the sizes of a pixel, in micrometers, under OME's names; empty where the unit is not known."""
    if density is None or not density.unit:
        return {}
    per_unit = density.per(_UNIT)
    sizes = {"X": 1 / per_unit.x, "Y": 1 / per_unit.y, "Z": per_unit.plane_distance}
    known = {letter: float(size) for letter, size in sizes.items() if size}
    return {f"PhysicalSize{letter}": size for letter, size in known.items()} | {
        f"PhysicalSize{letter}Unit": _UNIT for letter in known
    }


def _density(sizes: dict[str, Fraction | None]) -> PixelDensity | None:
    """Assume square pixels if one side is missing; `None` if both are."""
    x, y = sizes["X"] or sizes["Y"], sizes["Y"] or sizes["X"]
    return PixelDensity(1 / x, 1 / y, _UNIT, sizes["Z"]) if x and y else None


def _size(pixels: ElementTree.Element, letter: str) -> Fraction | None:
    """Read a size of a pixel in micrometers; `None` if it is missing or not understood."""
    unit = pixels.get(f"PhysicalSize{letter}Unit", _UNIT)
    try:
        size = float(pixels.get(f"PhysicalSize{letter}", ""))
    except ValueError:
        return None
    if unit not in METERS or not 1e-30 < size < 1e30:
        return None
    # The digits of the text, but never more than a double has.
    return Fraction(str(size)) * METERS[unit] / METERS[_UNIT]


def _record(root: ElementTree.Element) -> dict[str, Any] | None:
    for annotation in root.iter("MapAnnotation"):
        if annotation.get("Namespace") == _NAMESPACE:
            for entry in annotation.iter("M"):
                if entry.get("K") == records.KEYWORD:
                    return records.decode_record(entry.text)
    return None
