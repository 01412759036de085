"""Zarr: one array in a folder of chunks, or OME-Zarr, an image with its axes, distances and channels.

`zarr_source.py` reads the samples and the metadata of OME-Zarr.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deconv_cli.errors import FileAccessError, UsageError
from deconv_cli.io import limits, records
from deconv_cli.io.atomic import partial_path
from deconv_cli.io.codec import Codec, StoredImage, WriteRequest, zeros_of
from deconv_cli.io.codecs.zarr_source import (
    AXES,
    FLAVOR,
    HALF_WRITTEN,
    NAME,
    OME_NAME,
    OMERO,
    TIME,
    UNITS,
    ZarrSource,
    count_missing,
    describe_zarr,
    named_axes,
    open_stored,
    zarr_package,
)
from deconv_cli.io.files import FOLDER, list_members, refusing_damage, remove
from deconv_cli.io.layout import Array, Layout, rename_batch, working_bytes
from deconv_cli.io.metadata import Metadata
from deconv_cli.io.region_arrays import (
    Region,
    RegionSource,
    RegionTarget,
    put_in_place,
    refusing_to_write,
)

OME_SUFFIX = ".ome.zarr"
FORMAT_FILE = "zarr.json"
"""The description of an array or a group, in the folder of each."""
_MAX_CHUNK_BYTES = 64 * 2**20
"""Of a chunk that is kept from the source."""
_CHUNKS = {"YX": 512, "ZYX": 256}
"""Rows and columns of a chunk of planes and of stacks, which are cut along Z too."""
_DEPTH = 32
_CONFIG = {"write_empty_chunks": True}
"""Chunks of zeros are written too, so that every missing chunk is one that was forgotten."""


class Zarr(Codec):
    """Reads Zarr 2 and 3; writes Zarr 3, or OME-Zarr for names in .ome.zarr and for pictures of other formats."""

    name = NAME
    suffixes = (".zarr",)
    magic = (FOLDER,)
    is_folder = True
    record_inside = True
    carries = frozenset({"density", "channel_names"})
    selects = "series"

    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read an array, or the full resolution of an image."""
        found, n_stored = describe_zarr(path, None if member is None else int(member))
        limits.check_expansion(path, working_bytes(found.shape, np.dtype(found.dtype)), n_stored)
        samples = np.asarray(open_stored(path, found.member)[...])
        native = samples.astype(samples.dtype.newbyteorder("="), copy=False)
        return StoredImage(native, found.axes, found.metadata, found.record, notes=found.notes)

    def check(self, request: WriteRequest) -> None:
        """Refuse axes that OME-Zarr lacks if the name ends in .ome.zarr.

        Raises:
            UsageError: such axes, or the package is missing.
        """
        with zarr_package(request.path):
            pass
        if _is_ome_name(request.path) and not _is_ome(request):
            raise UsageError(
                f"'{request.path}' cannot hold axes {request.layout.axes}, since OME-Zarr knows only T and Z besides "
                "channels and planes; choose .zarr."
            )

    def order_axes(self, request: WriteRequest, layout: Layout) -> tuple[Layout, str, tuple[str, ...]]:
        """Keep the axes of an array, and order those of an image as OME-Zarr wants them."""
        if not _is_ome(request):
            return layout, layout.axes, ()
        renamed = _renamed(layout.axes)
        order = sorted(range(len(renamed)), key=lambda place: AXES.index(renamed[place]))
        letters, sizes = "".join(layout.axes[i] for i in order), tuple(layout.sizes[i] for i in order)
        new = [b for a, b in zip(layout.axes, renamed, strict=True) if a not in (b, "S")]
        notes = tuple(f"a batch axis was named {letter}" for letter in new)
        return replace(layout, axes=letters, sizes=sizes), "".join(renamed[i] for i in order), notes

    def choose_metadata(self, request: WriteRequest, image: StoredImage) -> tuple[Metadata, list[str]]:
        """Choose the metadata; a bare array has none."""
        kept, lost = super().choose_metadata(request, image)
        if _is_ome(request):
            return replace(kept, flavor=FLAVOR), lost
        shared = {"resolution": kept.density, "channel names": kept.channel_names}
        lost += [name for name, value in shared.items() if value]
        return Metadata(), [*lost, *kept.native, *kept.native_of_channels]

    def write(self, path: Path, image: StoredImage) -> None:
        """Write all chunks, and then the metadata."""
        array = _create(path, image, _chunk_of(image.shape, image.axes))
        samples = np.asarray(image.samples)
        for region in _each_unit(array):
            array[region] = samples[region]
        _write_attributes(path, image)

    def open_regions(self, path: Path, member: str | int | None) -> RegionSource:
        """Open an array, or the full resolution of an image."""
        with refusing_damage(path, f"a {self.name}"):
            source, _ = describe_zarr(path, None if member is None else int(member))
            open_stored(path, source.member)
        return source

    def plan_regions(self, request: WriteRequest, layout: Layout, source: RegionSource) -> RegionTarget:
        """Decide on the axes, the chunks and the metadata; keep the chunks of a Zarr unless they are too large."""
        image = self.describe_result(request, layout, source.metadata)
        is_like = isinstance(source, ZarrSource) and source.axes in ("", image.axes)
        keeps = is_like and 8 * math.prod(source.chunk) <= _MAX_CHUNK_BYTES and len(source.chunk) == len(image.axes)
        chunk = source.chunk if keeps else _chunk_of(image.shape, image.axes)
        return ZarrTarget(request.path, image.shape, request.dtype, image.axes, chunk, image.notes, image.metadata)


ZARR = Zarr()


def _is_ome_name(path: Path) -> bool:
    return path.name.lower().endswith(OME_SUFFIX)


def _is_ome(request: WriteRequest) -> bool:
    """Decide whether to write OME-Zarr: if the name asks for it, or for a picture whose axes fit."""
    was_array = request.source_format == Zarr.name and request.flavor != FLAVOR
    is_wanted = _is_ome_name(request.path) or (request.from_picture and not was_array)
    letters = _renamed(request.layout.axes)
    return is_wanted and {"Y", "X"} <= set(letters) <= set(AXES) and len(set(letters)) == len(letters)


def _renamed(axes: str) -> str:
    """Rename colors to channels, and a batch axis that OME-Zarr does not have to times or planes."""
    return rename_batch(axes if "C" in axes else axes.replace("S", "C"), AXES)


def _member_of(metadata: Metadata) -> str:
    """Name the array of an image in its group; a bare array has no name."""
    return "0" if metadata.flavor == FLAVOR else ""


def _chunk_of(shape: tuple[int, ...], axes: str) -> tuple[int, ...]:
    """Choose chunks of one to eight million bytes: planes, or stacks if there is depth."""
    sizes = dict(zip(axes, shape, strict=True))
    if not {"Y", "X"} <= set(axes):
        return tuple(min(n, 2**20) if i + 1 == len(shape) else 1 for i, n in enumerate(shape))
    side = _CHUNKS["ZYX" if sizes.get("Z", 1) > 1 else "YX"]
    largest = {"Z": _DEPTH, "Y": side, "X": side}
    return tuple(min(n, largest.get(letter, 1)) for letter, n in zip(axes, shape, strict=True))


def _create(path: Path, image: StoredImage, chunk: tuple[int, ...]) -> Any:  # noqa: ANN401 (a zarr.Array)
    """Make an array in a folder, and the group around it; no chunk is written yet."""
    with zarr_package(path) as zarr:
        store = zarr.storage.LocalStore(path)
        member = _member_of(image.metadata)
        if member:
            zarr.create_group(store=store)
        return zarr.create_array(
            store=store,
            name=member or None,
            shape=image.shape,
            chunks=chunk,
            dtype=image.dtype,
            fill_value=0,
            # Of the whole chunk, so that a damaged one is noticed.
            compressors=zarr.codecs.ZstdCodec(level=1, checksum=True),
            dimension_names=[letter.lower() for letter in image.axes],
            config=_CONFIG,
        )


def _write_attributes(path: Path, image: StoredImage) -> None:
    """Add the record of the run to a folder of chunks, and the metadata of an image."""
    attributes: dict[str, Any] = {records.KEYWORD: image.record or {}}
    if member := _member_of(image.metadata):
        windows = _windows(open_stored(path, member), image.axes)
        attributes |= group_attributes(member, image.axes, image.metadata, windows)
    root = json.loads((path / FORMAT_FILE).read_text(encoding="utf-8"))
    root["attributes"] = root.get("attributes", {}) | attributes
    (path / FORMAT_FILE).write_bytes(json.dumps(root, allow_nan=False, indent=2).encode())


def _windows(array: Any, axes: str) -> list[tuple[float, float]]:  # noqa: ANN401 (a zarr.Array)
    """Estimate the least and the largest value of each channel from the file of samples in the middle."""
    units = zip(array.shape, array.chunks, strict=True)
    middle = [slice(n // 2 // unit * unit, n // 2 // unit * unit + unit) for n, unit in units]
    place, found = axes.find("C"), []
    for channel in range(array.shape[place] if place >= 0 else 1):
        region = [slice(channel, channel + 1) if i == place else part for i, part in enumerate(middle)]
        samples = array[tuple(region)]
        found.append((float(samples.min()), float(samples.max())))
    return found


def _each_unit(array: Any) -> Iterator[tuple[slice, ...]]:  # noqa: ANN401 (a zarr.Array)
    """List the regions of an array that lie in one file each; written one at a time, a failure leaves none pending."""
    axes = zip(array.shape, array.chunks, strict=True)
    return itertools.product(*([slice(a, min(a + unit, n)) for a in range(0, n, unit)] for n, unit in axes))


@dataclass(frozen=True, eq=False)
class ZarrTarget(RegionTarget):
    """An unfinished Zarr, in a folder of a hidden name; it gets its metadata last."""

    def _make(self, own: Path) -> None:
        _create(own, self._described({}), self.unit)

    def _described(self, record: dict[str, Any]) -> StoredImage:
        return StoredImage(zeros_of(self.shape, self.dtype), self.axes, self.metadata, record)

    def _open(self, written: Path) -> RegionSource:
        member = _member_of(self.metadata)
        with refusing_damage(self.path, f"a {NAME}"):
            array = open_stored(written, member)
            json.loads((written / FORMAT_FILE).read_bytes())  # of the group, which may be half written
            # A run writes the attributes just before it renames the folder.
            return ZarrSource(
                *(written, array.shape, array.dtype.name, named_axes(array), NAME, array.chunks),
                is_picture=True,
                member=member,
            )

    def write(self, region: Region, samples: Array) -> None:
        """Write whole chunks."""
        self.check_units(region)
        with refusing_to_write(self.path), zarr_package(self.path) as zarr:
            store = zarr.storage.LocalStore(partial_path(self.path))
            stored = zarr.open_array(store=store, path=_member_of(self.metadata), mode="r+")
            # `open_array` takes no configuration.
            array = zarr.Array(zarr.AsyncArray(metadata=stored.metadata, store_path=stored.store_path, config=_CONFIG))
            array[region] = samples

    def finish(self, record: dict[str, Any]) -> None:
        """Write the metadata, and rename the folder."""
        complete = records.without_folders(records.complete_record(record, self.shape, self.dtype, None))
        folder = partial_path(self.path)
        with refusing_to_write(self.path):
            n_missing, n_files = count_missing(folder / _member_of(self.metadata), self.shape, self.unit)
            if n_missing:  # they would be read as zeros
                raise FileAccessError(
                    f"'{self.path}' should have {n_files} files of samples, but {n_missing} are missing in "
                    f"'{folder}'; run again to write them."
                )
            _write_attributes(folder, self._described(complete))
            for name in [name for name, *_ in list_members(folder) if name.endswith(HALF_WRITTEN)]:
                remove(folder / name)
            put_in_place(self.path)


_VERSION = "0.5"
_UNIT_NAMES = {unit: name for name, unit in UNITS.items()} | {"in": "inch"}
_COLORS = ("FFFFFF", "00FF00", "FF00FF", "00FFFF", "FF0000", "0000FF", "FFFF00")
"""Of channels in viewers."""


def group_attributes(
    member: str, axes: str, metadata: Metadata, windows: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Describe an image as the attribute `ome` of its group.

    `member` names its array. `windows` holds the least and the largest value of each channel.
    """
    known, time = metadata.density, _members(metadata.native, TIME)
    scale = dict.fromkeys(axes, 1.0) | ({"T": time["scale"]} if time else {})
    units = {"T": time.get("unit", "")}
    if known:
        scale |= {"X": float(1 / known.x), "Y": float(1 / known.y), "Z": float(known.plane_distance or 1)}
        with_length = "YX" if known.plane_distance is None else "ZYX"
        units |= dict.fromkeys(with_length, _UNIT_NAMES[known.unit] if known.unit else "")
    transformations = [{"type": "scale", "scale": [scale[a] for a in axes]}]
    datasets = [{"path": member, "coordinateTransformations": transformations}]
    multiscale: dict[str, Any] = {"axes": [_axis(a, units.get(a, "")) for a in axes], "datasets": datasets}
    multiscale |= {"name": metadata.native[OME_NAME]} if OME_NAME in metadata.native else {}
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
    omero = _members(metadata.native_of_channels, OMERO)
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
