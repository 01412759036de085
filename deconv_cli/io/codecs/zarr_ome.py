"""The metadata of OME-Zarr: axes, distances, names of channels, resolutions.

Source: Moore et al., OME-Zarr 0.5 (and 0.4, with the same fields in another place),
https://ngff.openmicroscopy.org/0.5/. Before 0.4 axes were names alone, and before 0.3 always the same five; there were
no distances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from deconv_cli.io.metadata import METERS, Metadata, PixelDensity

FLAVOR = "ome-zarr"
"""Of `Metadata.flavor`."""
AXES = "TCZYX"
"""Letters of its axes, in the order of the standard."""

_VERSION = "0.5"
_PREFIX = "OME-Zarr "
_NAME, _TIME, _TRANSLATION, _OMERO = (_PREFIX + name for name in ("name", "time step", "translation", "omero"))
"""Of its fields among `Metadata.native`, the last one among those of channels."""
_UNITS = {"nanometer": "nm", "micrometer": "µm", "millimeter": "mm", "centimeter": "cm", "meter": "m", "inch": "inch"}
_UNIT_NAMES = {unit: name for name, unit in _UNITS.items()} | {"in": "inch"}
_COLORS = ("FFFFFF", "00FF00", "FF00FF", "00FFFF", "FF0000", "0000FF", "FFFF00")
"""Of channels in viewers."""


def read_axes(multiscale: dict[str, Any]) -> str:
    """Choose a letter for each axis: its own name where that is a letter, else one by its type."""
    letters = ""
    for axis in _axes_of(multiscale):
        name, kind = str(axis["name"]).upper(), axis.get("type")
        letter = name if len(name) == 1 else {"time": "T", "channel": "C"}.get(str(kind), "Q")
        letters += next(free for free in letter + "QRUVW" if free not in letters)
    return letters


def read_fields(multiscale: dict[str, Any], omero: dict[str, Any], axes: str) -> Metadata:
    """Read the metadata of an image; damaged and unknown fields become `unsupported`."""
    units = {letter: str(axis.get("unit", "")) for letter, axis in zip(axes, _axes_of(multiscale), strict=True)}
    scale, translation = _transformation(multiscale, axes)
    density, unsupported = _density(scale, units)
    if density and density.unit:
        translation |= {a: translation[a] * float(_in_unit(units[a], density.unit)) for a in "ZYX" if a in axes}
    native: dict[str, Any] = {_NAME: str(multiscale["name"])} if multiscale.get("name") else {}
    if "T" in scale and (scale["T"] != 1 or units["T"]):
        native[_TIME] = {"scale": scale["T"], "unit": units["T"]}
    if any(translation.values()) and not unsupported:
        native[_TRANSLATION] = translation
    channels = omero.get("channels")
    labels = tuple(str(channel.get("label", "")) for channel in channels) if isinstance(channels, list) else ()
    return Metadata(
        density=density,
        channel_names=labels if all(labels) else (),
        native=native,
        native_of_channels={_OMERO: omero} if omero else {},
        flavor=FLAVOR,
        unsupported=unsupported,
    )


def _axes_of(multiscale: dict[str, Any]) -> list[dict[str, Any]]:
    return [axis if isinstance(axis, dict) else {"name": axis} for axis in multiscale.get("axes", AXES.lower())]


def _transformation(multiscale: dict[str, Any], axes: str) -> tuple[dict[str, float], dict[str, float]]:
    """Multiply the scales of the full resolution, and of all resolutions; return the place of the first sample, too."""
    scale, translation = dict.fromkeys(axes, 1.0), dict.fromkeys(axes, 0.0)
    dataset = multiscale["datasets"][0]
    for step in (*dataset.get("coordinateTransformations", ()), *multiscale.get("coordinateTransformations", ())):
        values = step.get(step.get("type"), ())
        if not isinstance(values, list) or len(values) != len(axes):
            continue
        for letter, value in zip(axes, values, strict=True):
            if step["type"] == "scale":
                scale[letter] *= float(value)
                translation[letter] *= float(value)
            else:
                translation[letter] += float(value)
    return scale, translation


def _density(scale: dict[str, float], units: dict[str, str]) -> tuple[PixelDensity | None, tuple[str, ...]]:
    """Convert the scales of space to a resolution; return the names of units that are not understood, too."""
    space = [letter for letter in "ZYX" if letter in scale]
    if not {"Y", "X"} <= set(space) or not all(1e-30 < scale[letter] < 1e30 for letter in space):
        return None, ()
    if not any(units[letter] for letter in space) and all(scale[letter] == 1 for letter in space):
        return None, ()
    unit = _UNITS.get(units["X"], "")
    unknown = sorted({units[letter] for letter in space if units[letter] not in _UNITS and units[letter]})
    if unknown or len({bool(units[letter]) for letter in space}) > 1:
        return None, (f"OME-Zarr scale in {', '.join(unknown) or 'mixed units'}",)
    sizes = {a: Fraction(str(scale[a])) * (_in_unit(units[a], unit) if unit else 1) for a in space}
    return PixelDensity(1 / sizes["X"], 1 / sizes["Y"], unit, sizes.get("Z")), ()


def _in_unit(name: str, unit: str) -> Fraction:
    """Convert a unit of OME-Zarr to a unit of a resolution."""
    return METERS[_UNITS[name]] / METERS[unit]


def group_attributes(
    member: str, axes: str, metadata: Metadata, windows: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Describe an image as the attribute `ome` of its group.

    `member` names its array. `windows` holds the least and the largest value of each channel.
    """
    known, time = metadata.density, _members(metadata.native, _TIME)
    scale = dict.fromkeys(axes, 1.0) | ({"T": time["scale"]} if time else {})
    units = {"T": time.get("unit", "")}
    if known:
        scale |= {"X": float(1 / known.x), "Y": float(1 / known.y), "Z": float(known.plane_distance or 1)}
        with_length = "YX" if known.plane_distance is None else "ZYX"
        units |= dict.fromkeys(with_length, _UNIT_NAMES[known.unit] if known.unit else "")
    transformations = [{"type": "scale", "scale": [scale[a] for a in axes]}]
    moved = _members(metadata.native, _TRANSLATION)
    if any(moved.values()):
        transformations.append({"type": "translation", "translation": [moved.get(a, 0.0) for a in axes]})
    datasets = [{"path": member, "coordinateTransformations": transformations}]
    multiscale: dict[str, Any] = {"axes": [_axis(a, units.get(a, "")) for a in axes], "datasets": datasets}
    multiscale |= {"name": metadata.native[_NAME]} if _NAME in metadata.native else {}
    attributes: dict[str, Any] = {"version": _VERSION, "multiscales": [multiscale]}
    omero = _omero(metadata, windows)
    return {"ome": attributes | ({"omero": omero} if omero else {})}


def _members(fields: Mapping[str, object], name: str) -> dict[str, Any]:
    found = fields.get(name)
    return dict(found) if isinstance(found, dict) else {}


def _axis(letter: str, unit: str) -> dict[str, str]:
    kind = {"T": "time", "C": "channel"}.get(letter, "space")
    return {"name": letter.lower(), "type": kind} | ({"unit": unit} if unit else {})


def _omero(metadata: Metadata, windows: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Describe the display of channels: as in the source, with the window of the new samples."""
    omero = _members(metadata.native_of_channels, _OMERO)
    before = omero.get("channels", [{} for _ in metadata.channel_names])
    if len(before) != len(windows):
        return {}
    names = metadata.channel_names or [channel.get("label") for channel in before]
    channels = []
    for i, (channel, name, (low, high)) in enumerate(zip(before, names, windows, strict=True)):
        window = {"min": low, "max": high, "start": low, "end": high}
        described = {"color": _COLORS[i % len(_COLORS)], **channel, "window": window}
        channels.append(described | ({"label": name} if name else {}))
    return omero | {"channels": channels}
