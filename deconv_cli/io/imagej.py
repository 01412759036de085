"""ImageJ's fields: which of them a result keeps, and where the record goes."""

from __future__ import annotations

from typing import Any

from deconv_cli.io import records

_COUNTS = ("ImageJ", "images", "channels", "slices", "frames", "hyperstack")
_PER_CHANNEL = ("Ranges", "LUTs", "Labels", "mode")

WRITABLE_DTYPES = ("uint8", "int16", "uint16", "float32")

METER_UNITS = {
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns", "\\u00B5m"), "µm"),
    **{unit: unit for unit in ("nm", "mm", "cm", "m", "pixel")},
    **dict.fromkeys(("inch", "in"), "in"),
}
"""OME's word for each unit that ImageJ writes."""


def read_fields(found: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Split ImageJ metadata into the fields to carry and the record of a run.

    Returns:
        The fields without the counts, which follow from the axes, and the record or None.
    """
    fields = {name: value for name, value in found.items() if name not in _COUNTS}
    return fields, records.take_line(fields.get("Info"))


def fields_for(fields: dict[str, Any], *, same_channels: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Choose the fields that still hold for a result.

    Returns:
        The fields, and the names of those left out.
    """
    dropped = () if same_channels else tuple(name for name in _PER_CHANNEL if name in fields)
    return {name: value for name, value in fields.items() if name not in dropped}, dropped


def fits(axes: str, dtype: str, n_bytes: int) -> bool:
    """Tell whether ImageJ's own kind of TIFF can hold an array.

    Args:
        axes: letters of the array's axes.
        dtype: NumPy name of its type.
        n_bytes: its size; the 32-bit offsets of the format end at 4 GB.
    """
    colors_fit = "S" not in axes or dtype == "uint8"
    in_order = [letter for letter in "TZCYXS" if letter in axes] == list(axes)
    return dtype in WRITABLE_DTYPES and in_order and colors_fit and n_bytes < 3_900_000_000


def with_record(fields: dict[str, Any], encoded: str) -> dict[str, Any]:
    """Put a record into `Info`, as a line of its own."""
    return {**fields, "Info": records.put_line(str(fields.get("Info", "")), encoded)}


def as_ome(fields: dict[str, Any], per_unit: tuple[float, float] | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Translate ImageJ's fields into OME's.

    Args:
        fields: ImageJ's.
        per_unit: pixels per unit along x and y.

    Returns:
        OME's fields, and the names of ImageJ's that have no counterpart.
    """
    unit = METER_UNITS.get(str(fields.get("unit", "")))
    ome: dict[str, Any] = {}
    if unit and per_unit:
        ome |= {"PhysicalSizeX": 1 / per_unit[0], "PhysicalSizeXUnit": unit}
        ome |= {"PhysicalSizeY": 1 / per_unit[1], "PhysicalSizeYUnit": unit}
    if unit and fields.get("spacing"):
        ome |= {"PhysicalSizeZ": float(fields["spacing"]), "PhysicalSizeZUnit": unit}
    if fields.get("finterval"):
        ome |= {"TimeIncrement": float(fields["finterval"]), "TimeIncrementUnit": "s"}
    translated = {"spacing", "unit", "finterval", "loop", "mode"}
    return ome, tuple(sorted(set(fields) - translated))
