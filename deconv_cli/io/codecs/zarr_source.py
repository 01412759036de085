"""Reading Zarr arrays and OME-Zarr images, version 2 or 3; what they promise is checked first.

Source: Moore et al., OME-Zarr 0.5 (and 0.4, with the same fields in another place),
https://ngff.openmicroscopy.org/0.5/.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from deconv_cli.errors import MalformedInputError, UsageError, import_extra, warnings_here
from deconv_cli.io import limits, records
from deconv_cli.io.codec import pyramid_notes
from deconv_cli.io.files import MARKS, list_members, read_member, refusing_damage
from deconv_cli.io.layout import Array
from deconv_cli.io.metadata import METERS, Metadata, PixelDensity
from deconv_cli.io.region_arrays import Region, RegionSource

NAME = "Zarr"
HALF_WRITTEN = ".partial"
"""Ending of the name of an unfinished chunk of the package zarr."""

_LAYOUT = "bioformats2raw.layout"
"""Marks a group that holds several images, called 0, 1, ..."""
_PARTS_TO_OPEN, _MAX_CODECS = 64, 16
_DESCRIPTIONS = ("zarr.json", ".zarray", ".zattrs")
"""Files of an array that hold no samples."""
FLAVOR = "ome-zarr"
"""Of `Metadata.flavor`."""
AXES = "TCZYX"
"""Letters of its axes, in the order of the standard."""

_PREFIX = "OME-Zarr "
OME_NAME, TIME, OMERO = (_PREFIX + name for name in ("name", "time step", "omero"))
"""Of its fields among `Metadata.native`, the last one among those of channels."""
UNITS = {"nanometer": "nm", "micrometer": "µm", "millimeter": "mm", "centimeter": "cm", "meter": "m", "inch": "inch"}


@dataclass(frozen=True, eq=False)
class ZarrSource(RegionSource):
    """An array of a Zarr, or the full resolution of an image."""

    member: str = ""
    """Path of the array in the folder."""

    def read(self, region: Region) -> Array:
        """Read a part; chunks that were never written are the fill value of the array."""
        with refusing_damage(self.path, f"a {NAME}"):
            found = np.asarray(open_stored(self.path, self.member)[region])
            native: Array = found.astype(np.dtype(self.dtype), copy=False)
            return native

    def fingerprint(self) -> str:
        """Hash the descriptions, and the names, sizes and times of all chunks."""
        found = hashlib.sha256(repr((self.shape, self.dtype, self.axes, self.member)).encode())
        for name in sorted(f"{self.member}/{mark}".lstrip("/") for mark in (*MARKS, ".zattrs")):
            found.update(read_member(self.path / name) or b"")
        for listed in sorted(list_members(self.path / self.member)):
            found.update(repr(listed).encode())
        return found.hexdigest()


@contextmanager
def zarr_package(path: Path) -> Iterator[Any]:
    """Import the package, without its warnings of codecs outside the standard; raises `UsageError` if it is missing."""
    package = import_extra("zarr", f"'{path}' is a Zarr, which needs", "zarr")
    with warnings_here("ignore"):
        yield package


def open_stored(path: Path, member: str) -> Any:  # noqa: ANN401 (a zarr.Array)
    """Open an array for reading."""
    with zarr_package(path) as zarr:
        return zarr.open_array(store=zarr.storage.LocalStore(path, read_only=True), path=member, mode="r")


def describe_zarr(path: Path, series: int | None) -> tuple[ZarrSource, int]:
    """Describe the array, or the image, that was chosen, and count the bytes of its samples on the disk.

    Raises:
        UsageError: no image of this number.
        MalformedInputError: damaged, several images and no number, or a group without an image.
    """
    with zarr_package(path) as zarr:
        node = zarr.open(store=zarr.storage.LocalStore(path, read_only=True), mode="r")
        record, member, metadata, notes = node.attrs.get(records.KEYWORD), "", Metadata(), tuple[str, ...]()
        if isinstance(node, zarr.Array):
            if series not in (None, 0):
                raise UsageError(f"'{path}' holds a single array, but series={series} was chosen.")
            array, axes = node, named_axes(node)
        else:
            group, ome, multiscale = _choose_image(path, node, series)
            place = PurePosixPath(group) / str(multiscale["datasets"][0]["path"])
            if place.is_absolute() or ".." in place.parts:
                raise ValueError(f"it looks for its samples outside, in '{place}'")
            member = str(place)
            if member not in node:
                raise ValueError(f"it is incomplete: it describes an array '{place}', but does not hold it")
            array, axes = node[member], read_axes(multiscale)
            metadata = read_fields(multiscale, ome.get("omero") or {}, axes)
            notes = pyramid_notes(len(multiscale["datasets"]) - 1)
    shape, dtype = tuple(int(size) for size in array.shape), array.dtype
    described = array.metadata.to_dict()
    chain = str(described.get("codecs", described.get("filters")))
    n_codecs = max(chain.count("'name'"), chain.count("'id'"))
    if n_codecs > _MAX_CODECS:
        raise ValueError(f"it has {n_codecs} codecs, but a normal array has one to five")
    if dtype.hasobject:
        raise MalformedInputError(f"'{path}' should hold real numbers, but its samples are {dtype}.")
    if axes and len(axes) != len(shape):
        raise ValueError(f"it names {len(axes)} axes of an array of shape {shape}")
    chunk, shard, itemsize = array.chunks, array.shards, max(dtype.itemsize, 1)
    limits.check_budget(path, limits.array_bytes(chunk, itemsize))
    sizes = _sizes_of_files(path / member)
    notes += _check_files(path / member, shape, shard or chunk, itemsize, sizes)
    n_stored = sum(sizes)
    n_parts = _n_files(shape, chunk) + _PARTS_TO_OPEN
    limits.check_expansion(path, 0, n_stored, n_parts=n_parts, by_parts=True)
    source = ZarrSource(
        *(path, shape, dtype.newbyteorder("=").name, axes, NAME, chunk),
        is_picture=True,
        metadata=metadata,
        record=record if isinstance(record, dict) else None,
        notes=notes,
        member=member,
    )
    return source, n_stored


def count_missing(folder: Path, shape: tuple[int, ...], unit: tuple[int, ...]) -> tuple[int, int]:
    """Count the files of samples that the folder of an array lacks, and those that it should have."""
    n_files = _n_files(shape, unit)
    return max(n_files - len(_sizes_of_files(folder)), 0), n_files


def _n_files(shape: tuple[int, ...], unit: tuple[int, ...]) -> int:
    return math.prod(-(-size // step) for size, step in zip(shape, unit, strict=True))


def _sizes_of_files(folder: Path) -> list[int]:
    """List the bytes of each file of samples in the folder of an array."""
    members = [(name, size) for name, size, _ in list_members(folder) if not name.endswith(HALF_WRITTEN)]
    return [size for name, size in members if PurePosixPath(name).name not in _DESCRIPTIONS]


def _check_files(
    path: Path, shape: tuple[int, ...], unit: tuple[int, ...], itemsize: int, sizes: list[int]
) -> tuple[str, ...]:
    """Compare what a Zarr promises with its files of samples; note files that are missing, as in half a copy."""
    if 0 in sizes:
        raise ValueError("it holds a file of samples that is empty")
    limits.check_expansion(path, limits.array_bytes((len(sizes), *unit), itemsize), sum(sizes), by_parts=True)
    n_files = _n_files(shape, unit)
    n_missing = n_files - len(sizes)
    if n_missing <= 0:
        return ()
    return (
        f"{n_missing} of {n_files} files of samples are missing; their samples were read as the fill value of the "
        "array",
    )


def _choose_image(path: Path, node: Any, series: int | None) -> tuple[str, dict[str, Any], Any]:  # noqa: ANN401
    """Choose an image of a group: the path of its own group, the metadata of that group, and its multiscale."""
    ome = _ome_of(node)
    if "plate" in ome or "well" in ome:
        raise MalformedInputError(f"'{path}' is a plate of many images; name one of them, such as {path.name}/A/1/0.")
    groups = [("", ome)]
    if _LAYOUT in ome or _LAYOUT in node.attrs:
        numbers = itertools.takewhile(lambda number: number in node, map(str, itertools.count()))
        groups = [(number, _ome_of(node[number])) for number in numbers]
    images = [(member, found, one) for member, found in groups for one in found.get("multiscales", ())]
    if any(not one.get("datasets") for *_, one in images):
        raise ValueError("it is incomplete: it describes an image, but names no array of its samples")
    if not images:
        raise MalformedInputError(
            f"'{path}' should be an array or an OME-Zarr image, but is a group; name one of its members."
        )
    if series is not None and not 0 <= series < len(images):
        raise UsageError(f"'{path}' holds series 0 to {len(images) - 1}, but series={series} was chosen.")
    if series is None and len(images) > 1:
        raise MalformedInputError(f"'{path}' holds {len(images)} images; choose one with series=N.")
    return images[series or 0]


def _ome_of(node: Any) -> dict[str, Any]:  # noqa: ANN401
    attributes = dict(node.attrs)
    found: dict[str, Any] = attributes.get("ome", attributes)
    return found


def named_axes(array: Any) -> str:  # noqa: ANN401
    """Read the letters of axes, if each of their names is a letter."""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or ()
    letters = "".join(str(name).upper() for name in names)
    are_letters = len(letters) == len(names) == len(set(letters)) == len(array.shape) and letters.isalpha()
    return letters if are_letters and {"Y", "X"} & set(letters) else ""


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
    scale = _scale(multiscale, axes)
    density, unsupported = _density(scale, units)
    native: dict[str, Any] = {OME_NAME: str(multiscale["name"])} if multiscale.get("name") else {}
    if "T" in scale and (scale["T"] != 1 or units["T"]):
        native[TIME] = {"scale": scale["T"], "unit": units["T"]}
    steps = multiscale["datasets"][0].get("coordinateTransformations", ())
    if any(any(step.get("translation", ())) for step in steps):
        unsupported += ("OME-Zarr translation",)
    channels = omero.get("channels")
    labels = tuple(str(channel.get("label", "")) for channel in channels) if isinstance(channels, list) else ()
    return Metadata(
        density=density,
        channel_names=labels if all(labels) else (),
        native=native,
        native_of_channels={OMERO: omero} if omero else {},
        flavor=FLAVOR,
        unsupported=unsupported,
    )


def _axes_of(multiscale: dict[str, Any]) -> list[dict[str, Any]]:
    return [axis if isinstance(axis, dict) else {"name": axis} for axis in multiscale.get("axes", AXES.lower())]


def _scale(multiscale: dict[str, Any], axes: str) -> dict[str, float]:
    """Multiply the scales of the full resolution, and of all resolutions."""
    scale = dict.fromkeys(axes, 1.0)
    dataset = multiscale["datasets"][0]
    for step in (*dataset.get("coordinateTransformations", ()), *multiscale.get("coordinateTransformations", ())):
        values = step.get("scale", ())
        if isinstance(values, list) and len(values) == len(axes):
            scale = {letter: scale[letter] * float(value) for letter, value in zip(axes, values, strict=True)}
    return scale


def _density(scale: dict[str, float], units: dict[str, str]) -> tuple[PixelDensity | None, tuple[str, ...]]:
    """Convert the scales of space to a resolution; return the names of units that are not understood, too."""
    space = [letter for letter in "ZYX" if letter in scale]
    if not {"Y", "X"} <= set(space) or not all(1e-30 < scale[letter] < 1e30 for letter in space):
        return None, ()
    if not any(units[letter] for letter in space) and all(scale[letter] == 1 for letter in space):
        return None, ()
    unit = UNITS.get(units["X"], "")
    unknown = sorted({units[letter] for letter in space if units[letter] not in UNITS and units[letter]})
    if unknown or len({bool(units[letter]) for letter in space}) > 1:
        return None, (f"OME-Zarr scale in {', '.join(unknown) or 'mixed units'}",)
    lengths = {a: METERS[UNITS[units[a]]] / METERS[unit] if unit else 1 for a in space}
    sizes = {a: Fraction(str(scale[a])) * length for a, length in lengths.items()}
    return PixelDensity(1 / sizes["X"], 1 / sizes["Y"], unit, sizes.get("Z")), ()
