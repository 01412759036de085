"""OME-XML: which fields are read, carried and written, and where the record goes.

Source: OME data model, schema 2016-06.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from deconv_cli.errors import MalformedInputError
from deconv_cli.io import records

WRITABLE_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")

_PIXELS = (
    *("PhysicalSizeX", "PhysicalSizeXUnit", "PhysicalSizeY", "PhysicalSizeYUnit", "PhysicalSizeZ"),
    *("PhysicalSizeZUnit", "TimeIncrement", "TimeIncrementUnit"),
)
_CHANNEL = (
    *("Name", "AcquisitionMode", "Color", "ContrastMethod", "EmissionWavelength", "EmissionWavelengthUnit"),
    *("ExcitationWavelength", "ExcitationWavelengthUnit", "Fluor", "IlluminationType", "NDFilter"),
    *("PinholeSize", "PinholeSizeUnit", "PockelCellSetting"),
)
_STRUCTURE = {"OME", "Image", "Pixels", "Channel", "TiffData", "UUID", "LightPath", "BinData", "Description"}
_ANNOTATION = {"StructuredAnnotations", "MapAnnotation", "Value", "M", "AnnotationRef"}
_NAMESPACE = "deconv"


def read_fields(path: Path, xml: str, index: int) -> tuple[dict[str, Any], dict[str, Any] | None, tuple[str, ...]]:
    """Read the fields of one image, the record of a run, and the names of elements that are not carried.

    Args:
        path: named in the error.
        xml: the whole OME-XML text, already known to declare no entities.
        index: which image.

    Raises:
        MalformedInputError: not XML, or no such image.
    """
    try:
        root = ElementTree.fromstring(xml)  # noqa: S314  (entities are refused before)
    except ElementTree.ParseError as error:
        raise MalformedInputError(f"'{path}' has an OME description that is not XML; export it again.") from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    images = root.findall("Image")
    if index >= len(images):
        raise MalformedInputError(f"'{path}' describes {len(images)} OME images, fewer than it holds.")
    fields = _image_fields(images[index])
    elements = {element.tag for element in root.iter()} - _STRUCTURE - _ANNOTATION
    return fields, _record(root), tuple(sorted(elements))


def n_samples_described(xml: str, index: int) -> int | None:
    """Give SizeX × SizeY × SizeC × SizeZ × SizeT of one image, or None if it is not told."""
    root = ElementTree.fromstring(xml)  # noqa: S314
    sizes = [pixels.attrib for pixels in root.iter() if pixels.tag.endswith("}Pixels") or pixels.tag == "Pixels"]
    if index >= len(sizes):
        return None
    n_samples = 1
    for letter in "XYCZT":
        n_samples *= int(sizes[index].get(f"Size{letter}", "0"))
    return n_samples


def _image_fields(image: ElementTree.Element) -> dict[str, Any]:
    pixels = image.find("Pixels")
    fields: dict[str, Any] = {}
    if "Name" in image.attrib:
        fields["Name"] = image.attrib["Name"]
    description = image.findtext("Description")
    if description:
        fields["Description"] = description
    if pixels is not None:
        fields |= {name: _number(pixels.attrib[name]) for name in _PIXELS if name in pixels.attrib}
        channels = [channel.attrib for channel in pixels.findall("Channel")]
        names = {name: [channel.get(name) for channel in channels] for name in _CHANNEL}
        complete = {name: [_number(v) for v in values if v is not None] for name, values in names.items()}
        kept = {name: values for name, values in complete.items() if values and len(values) == len(channels)}
        if kept:
            fields["Channel"] = kept
    return fields


def _number(text: str) -> str | float | int:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _record(root: ElementTree.Element) -> dict[str, Any] | None:
    for annotation in root.iter("MapAnnotation"):
        if annotation.get("Namespace") == _NAMESPACE:
            for entry in annotation.iter("M"):
                if entry.get("K") == records.KEYWORD:
                    return records.decode_record(entry.text)
    return None


def with_record(fields: dict[str, Any], encoded: str) -> dict[str, Any]:
    """Add a record as a map annotation."""
    return {**fields, "MapAnnotation": {"Namespace": _NAMESPACE, records.KEYWORD: encoded}}


def fields_for(fields: dict[str, Any], *, same_channels: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Choose the fields that still hold for a result; names what was left out."""
    if same_channels or "Channel" not in fields:
        return fields, ()
    return {name: value for name, value in fields.items() if name != "Channel"}, ("channel names",)
