"""The metadata of OME-Zarr: axes, distances, names of channels, resolutions.

Source: Moore et al., OME-Zarr 0.5 (and 0.4, which says the same in another place), https://ngff.openmicroscopy.org/0.5/.
Before 0.4 axes were names alone, and before 0.3 always the same five; distances were not told.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from deconv_cli.io.stored_image import METERS, Metadata, Resolution

VERSION = "0.5"
FLAVOR = "ome-zarr"
"""Of `Metadata.flavor`."""
AXES = "TCZYX"
"""Letters of its axes, in the order that it wants them in."""

_PREFIX = "OME-Zarr "
NAME, TIME, TRANSLATION, OMERO = (_PREFIX + name for name in ("name", "time step", "translation", "omero"))
"""Of its fields among `Metadata.native`, the last one among those of channels."""

_UNITS = {
    **{"nanometer": "nm", "micrometer": "µm", "millimeter": "mm", "centimeter": "cm", "meter": "m", "inch": "inch"},
}
_UNIT_NAMES = {unit: name for name, unit in _UNITS.items()} | {"in": "inch"}
_COLORS = ("FFFFFF", "00FF00", "FF00FF", "00FFFF", "FF0000", "0000FF", "FFFF00")
"""In which channels are shown."""


def read_axes(multiscale: dict[str, Any]) -> str:
    """Give a letter for each axis: its own name where that is a letter, else one by its type."""
    letters = ""
    for axis in _axes_of(multiscale):
        name, kind = str(axis["name"]).upper(), axis.get("type")
        letter = name if len(name) == 1 else {"time": "T", "channel": "C"}.get(str(kind), "Q")
        letters += next(free for free in letter + "QRUVW" if free not in letters)
    return letters


def read_fields(multiscale: dict[str, Any], omero: dict[str, Any], axes: str) -> Metadata:
    """Gather what is said of an image; what is damaged or not understood is named among the unsupported."""
    units = {letter: str(axis.get("unit", "")) for letter, axis in zip(axes, _axes_of(multiscale), strict=True)}
    scale, translation = _transformation(multiscale, axes)
    resolution, unsupported = _resolution(scale, units)
    if resolution and resolution.unit:
        translation |= {a: translation[a] * float(_in_unit(units[a], resolution.unit)) for a in "ZYX" if a in axes}
    native: dict[str, Any] = {NAME: str(multiscale["name"])} if multiscale.get("name") else {}
    if "T" in scale and (scale["T"] != 1 or units["T"]):
        native[TIME] = {"scale": scale["T"], "unit": units["T"]}
    if any(translation.values()) and not unsupported:
        native[TRANSLATION] = translation
    channels = omero.get("channels")
    labels = tuple(str(channel.get("label", "")) for channel in channels) if isinstance(channels, list) else ()
    return Metadata(
        resolution=resolution,
        channel_names=labels if all(labels) else (),
        native=native,
        native_of_channels={OMERO: omero} if omero else {},
        flavor=FLAVOR,
        unsupported=unsupported,
    )


def _axes_of(multiscale: dict[str, Any]) -> list[dict[str, Any]]:
    """Give the descriptions of the axes, as any version has them."""
    return [axis if isinstance(axis, dict) else {"name": axis} for axis in multiscale.get("axes", AXES.lower())]


def group_attributes(
    members: Sequence[str], axes: str, metadata: Metadata, windows: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Describe an image as the attribute `ome` of its group.

    Args:
        members: names of its arrays, the full resolution first, each half the size of the one before.
        axes: letters of the axes, in the order T, C, Z, Y, X.
        metadata: what is known of it.
        windows: the least and the largest value of each channel, by which viewers show it.
    """
    units, scale, origin = _units(axes, metadata), _scale(axes, metadata), metadata.native.get(TRANSLATION, {})
    datasets = []
    for level, member in enumerate(members):
        factor = {letter: 2.0**level if letter in "YX" else 1.0 for letter in axes}
        # The mean of two pixels lies between them.
        moved = [origin.get(a, 0.0) + (factor[a] - 1) / 2 * scale[a] for a in axes]
        transformations = [{"type": "scale", "scale": [scale[a] * factor[a] for a in axes]}]
        if any(moved):
            transformations.append({"type": "translation", "translation": moved})
        datasets.append({"path": member, "coordinateTransformations": transformations})
    multiscale: dict[str, Any] = {"axes": [_axis(a, units.get(a, "")) for a in axes], "datasets": datasets}
    multiscale |= {"name": metadata.native[NAME]} if NAME in metadata.native else {}
    multiscale |= {"type": "mean"} if len(members) > 1 else {}
    attributes: dict[str, Any] = {"version": VERSION, "multiscales": [multiscale]}
    omero = _omero(metadata, windows)
    return {"ome": attributes | ({"omero": omero} if omero else {})}


def _transformation(multiscale: dict[str, Any], axes: str) -> tuple[dict[str, float], dict[str, float]]:
    """Multiply the scales of the full resolution, and of all resolutions; gives the place of the first sample too."""
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


def _resolution(scale: dict[str, float], units: dict[str, str]) -> tuple[Resolution | None, tuple[str, ...]]:
    """Make a resolution of the scales of space; what has no length that is understood is named."""
    space = [letter for letter in "ZYX" if letter in scale]
    if not {"Y", "X"} <= set(space) or not all(1e-30 < scale[letter] < 1e30 for letter in space):
        return None, ()
    if not any(units[letter] for letter in space) and all(scale[letter] == 1 for letter in space):
        return None, ()
    unit = _UNITS.get(units["X"], "")
    unknown = sorted({units[letter] for letter in space if units[letter] not in _UNITS and units[letter]})
    if unknown or len({bool(units[letter]) for letter in space}) > 1:
        return None, (f"OME-Zarr scale in {', '.join(unknown) or 'mixed units'}",)
    sizes = {}
    for letter in space:
        size = Fraction(str(scale[letter]))
        sizes[letter] = size * _in_unit(units[letter], unit) if unit else size
    return Resolution(1 / sizes["X"], 1 / sizes["Y"], unit, sizes.get("Z")), ()


def _in_unit(name: str, unit: str) -> Fraction:
    """Give the length of a unit of OME-Zarr in another one of a resolution."""
    return METERS[_UNITS[name]] / METERS[unit]


def _scale(axes: str, metadata: Metadata) -> dict[str, float]:
    known, time = metadata.resolution, metadata.native.get(TIME, {})
    scale = dict.fromkeys(axes, 1.0) | ({"T": time["scale"]} if time else {})
    if known:
        scale |= {"X": float(1 / known.x), "Y": float(1 / known.y), "Z": float(known.plane_distance or 1)}
    return scale


def _units(axes: str, metadata: Metadata) -> dict[str, str]:
    known, time = metadata.resolution, metadata.native.get(TIME, {})
    unit = _UNIT_NAMES[known.unit] if known and known.unit else ""
    with_length = "YX" if known and known.plane_distance is None else "ZYX"
    return {letter: unit if letter in with_length else time.get("unit", "") if letter == "T" else "" for letter in axes}


def _axis(letter: str, unit: str) -> dict[str, str]:
    kind = {"T": "time", "C": "channel"}.get(letter, "space")
    return {"name": letter.lower(), "type": kind} | ({"unit": unit} if unit else {})


def _omero(metadata: Metadata, windows: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Describe how channels are shown: as the source did, with the window of the new samples."""
    omero = dict(metadata.native_of_channels.get(OMERO, {}))
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
