"""ImageJ's kind of TIFF: its fields, its units, and what it can hold."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

from deconv_cli.io import records
from deconv_cli.io.stored_image import Metadata, StoredImage

PREFIX = "ImageJ "
"""Of its fields among `Metadata.native`."""

AXES = "TZCYXS"
"""Letters of its axes, in the order of its files."""

_COUNTS = ("ImageJ", "images", "channels", "slices", "frames", "hyperstack")
_OF_CHANNELS = ("Ranges", "LUTs", "Labels", "mode")
_UNITS = {
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns", "\\u00B5m"), "µm"),
    **{unit: unit for unit in ("nm", "mm", "cm", "m", "in", "inch")},
}
_DTYPES = ("uint8", "int16", "uint16", "float32")


def read_fields(found: dict[str, Any], metadata: Metadata) -> tuple[Metadata, dict[str, Any] | None]:
    """Add ImageJ's fields to what the tags say, but for the counts that follow from the axes; gives the record too."""
    fields = {PREFIX + name: value for name, value in found.items() if name not in (*_COUNTS, *_OF_CHANNELS)}
    if records.take_line(found.get("Info")) is not None:
        fields[PREFIX + "Info"] = records.drop_line(found["Info"])
    of_channels = {PREFIX + name: found[name] for name in _OF_CHANNELS if name in found}
    resolution = metadata.resolution
    unit = _UNITS.get(str(found.get("unit", "")), "")
    if resolution and unit:
        spacing = _positive(found.get("spacing"))
        resolution = replace(resolution, unit=unit, plane_distance=spacing)
    found_metadata = replace(
        metadata,
        resolution=resolution,
        native=metadata.native | fields,
        native_of_channels=of_channels,
        flavor="imagej",
    )
    return found_metadata, records.take_line(found.get("Info"))


def fields_to_write(metadata: Metadata, record: str) -> dict[str, Any]:
    """Give the fields of a file to be written, the record as a line of its own in `Info`."""
    native = metadata.native | metadata.native_of_channels
    fields = {name.removeprefix(PREFIX): value for name, value in native.items() if name.startswith(PREFIX)}
    return fields | {"Info": records.put_line(str(fields.get("Info", "")), record)}


def fits(image: StoredImage) -> bool:
    """Check whether ImageJ's kind of TIFF can hold an image; its 32-bit offsets end at 4 GB."""
    colors_fit = "S" not in image.axes or (image.dtype == "uint8" and image.alpha is None)
    in_order = [letter for letter in AXES if letter in image.axes] == list(image.axes)
    return image.dtype in _DTYPES and in_order and colors_fit and image.samples.nbytes < 3_900_000_000


def _positive(value: object) -> Fraction | None:
    """Take a number of a description as an exact one; None unless it is positive and finite."""
    if not isinstance(value, int | float) or not 0 < value < float("inf"):
        return None
    return Fraction(str(float(value)))
