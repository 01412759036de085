"""Zarr: one array in a folder of chunks, or OME-Zarr, an image with its axes, distances, channels and resolutions."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deconv_cli.errors import UsageError
from deconv_cli.io import limits, records
from deconv_cli.io.codec import Array, Codec, StoredImage, WriteRequest
from deconv_cli.io.codecs import zarr_ome
from deconv_cli.io.codecs.zarr_source import NAME, describe_zarr, open_store, open_stored, zarr_package
from deconv_cli.io.files import FOLDER, write_member
from deconv_cli.io.layout import Layout
from deconv_cli.io.metadata import Metadata
from deconv_cli.io.samples import working_bytes

OME_SUFFIX = ".ome.zarr"
FORMAT_FILE = "zarr.json"
"""The description of an array or a group, in the folder of each."""
_CHUNKS = {"YX": 512, "ZYX": 256}
"""Rows and columns of a chunk of planes and of stacks, which are cut along Z too."""
_DEPTH = 32


class Zarr(Codec):
    """Zarr 2 and 3 in, Zarr 3 out; OME-Zarr where the name ends in .ome.zarr, and for pictures of other formats."""

    name = NAME
    suffixes = (".zarr",)
    magic = (FOLDER,)
    has_levels = True
    is_folder = True
    record_inside = True
    carries = frozenset({"resolution", "channel_names"})
    selects = "series"

    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read an array, or the full resolution of an image."""
        found, n_stored = describe_zarr(path, None if member is None else int(member))
        limits.check_expansion(path, working_bytes(found.shape, np.dtype(found.dtype)), n_stored)
        samples = np.asarray(open_stored(path, found.member)[...])
        native = samples.astype(samples.dtype.newbyteorder("="), copy=False)
        return StoredImage(native, found.axes, found.metadata, found.record, notes=found.notes)

    def check(self, request: WriteRequest) -> None:
        """Refuse axes that OME-Zarr lacks, where the name asks for it, and several resolutions of a bare array."""
        if is_ome(request):
            _check_levels(request)
            return
        if _is_ome_name(request.path):
            raise UsageError(
                f"'{request.path}' cannot hold axes {request.layout.axes}, since OME-Zarr knows T and Z beside "
                "channels and planes; choose .zarr."
            )
        if request.n_levels > 1:
            raise UsageError(
                f"'{request.path}' cannot hold several resolutions, since it would be a bare array; choose .ome.zarr."
            )

    def order_axes(self, request: WriteRequest, layout: Layout) -> tuple[Layout, str, tuple[str, ...]]:
        """Keep the axes of an array, and order those of an image as OME-Zarr wants them."""
        if not is_ome(request):
            return layout, layout.axes, ()
        renamed = _renamed(layout.axes)
        order = sorted(range(len(renamed)), key=lambda place: zarr_ome.AXES.index(renamed[place]))
        letters, sizes = "".join(layout.axes[i] for i in order), tuple(layout.sizes[i] for i in order)
        new = [b for a, b in zip(layout.axes, renamed, strict=True) if a not in (b, "S")]
        notes = tuple(f"a batch axis was named {letter}" for letter in new)
        return replace(layout, axes=letters, sizes=sizes), "".join(renamed[i] for i in order), notes

    def carry(self, request: WriteRequest, image: StoredImage) -> tuple[Metadata, list[str]]:
        """Choose the metadata; a bare array has none."""
        kept, lost = super().carry(request, image)
        if is_ome(request):
            return replace(kept, flavor=zarr_ome.FLAVOR), lost
        shared = {"resolution": kept.resolution, "channel names": kept.channel_names}
        lost += [name for name, value in shared.items() if value]
        return Metadata(), [*lost, *kept.native, *kept.native_of_channels]

    def write(self, path: Path, image: StoredImage) -> None:
        """Write all chunks, and then their descriptions."""
        specs = plan_arrays(image)
        documents = describe_arrays(path, specs)
        samples = np.asarray(image.samples)
        array = open_described(path, documents, specs[0].member)
        for region in _each_unit(array):
            array[region] = samples[region]
        build_levels(lambda level: open_described(path, documents, specs[level].member), len(specs), image.axes)
        write_descriptions(path, documents, specs, image, channel_windows([samples], image.axes))


ZARR = Zarr()


def _is_ome_name(path: Path) -> bool:
    return path.name.lower().endswith(OME_SUFFIX)


def is_ome(request: WriteRequest) -> bool:
    """Decide whether OME-Zarr is written: where the name asks for it, or the source is a picture, if the axes fit."""
    was_array = request.source_format == Zarr.name and request.flavor != zarr_ome.FLAVOR
    is_wanted = _is_ome_name(request.path) or (request.from_picture and not was_array)
    letters = _renamed(request.layout.axes)
    return is_wanted and {"Y", "X"} <= set(letters) <= set(zarr_ome.AXES) and len(set(letters)) == len(letters)


def _renamed(axes: str) -> str:
    """Rename colors to channels, and a batch axis that OME-Zarr has no word for to times or planes."""
    axes = axes if "C" in axes else axes.replace("S", "C")
    free = [letter for letter in "TZ" if letter not in axes]
    return "".join(free.pop(0) if letter not in zarr_ome.AXES and free else letter for letter in axes)


def _check_levels(request: WriteRequest) -> None:
    """Refuse by `UsageError` more resolutions than there are down to a single pixel."""
    sizes = dict(zip(request.layout.axes, request.layout.sizes, strict=True))
    longest = max(sizes["Y"], sizes["X"])
    n_most = 1 + (longest - 1).bit_length()
    if request.n_levels > n_most:
        raise UsageError(
            f"'{request.path}' should hold {request.n_levels} resolutions, but an image of {longest} pixels a side has "
            f"{n_most}."
        )


@dataclass(frozen=True)
class ArraySpec:
    """An array to be made.

    Attributes:
        member: its path in the folder; empty for the folder itself.
        shape: of the whole.
        chunk: samples that are compressed together.
        shard: samples that lie in one file; `None` where each chunk has its own.
        dtype: NumPy name of the sample type.
        axes: a letter for each axis.
    """

    member: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...] | None
    dtype: str
    axes: str


def plan_arrays(
    image: StoredImage, chunk: tuple[int, ...] | None = None, shard: tuple[int, ...] | None = None
) -> tuple[ArraySpec, ...]:
    """Plan the array of each resolution of an image; a bare array has one, without a name."""
    chunk = chunk or _default_chunk(image.shape, image.axes)
    if image.metadata.flavor != zarr_ome.FLAVOR:
        return (ArraySpec("", image.shape, chunk, shard, image.dtype, image.axes),)
    shapes = [image.shape]
    for _ in range(1, image.n_levels):
        # An odd side keeps its last pixel.
        halves = [(n + 1) // 2 if a in "YX" else n for n, a in zip(shapes[-1], image.axes, strict=True)]
        shapes.append(tuple(halves))
    return tuple(ArraySpec(str(n), shape, chunk, shard, image.dtype, image.axes) for n, shape in enumerate(shapes))


def _default_chunk(shape: tuple[int, ...], axes: str) -> tuple[int, ...]:
    """Choose chunks of one to eight million bytes: of planes, or of stacks where there is depth."""
    sizes = dict(zip(axes, shape, strict=True))
    if not {"Y", "X"} <= set(axes):
        return tuple(min(n, 2**20) if i + 1 == len(shape) else 1 for i, n in enumerate(shape))
    side = _CHUNKS["ZYX" if sizes.get("Z", 1) > 1 else "YX"]
    largest = {"Z": _DEPTH, "Y": side, "X": side}
    return tuple(min(n, largest.get(letter, 1)) for letter, n in zip(axes, shape, strict=True))


def describe_arrays(path: Path, specs: Sequence[ArraySpec]) -> dict[str, str]:
    """Write the descriptions of arrays, and of the group around them, as texts by their names."""
    with zarr_package(path) as zarr:
        made: dict[str, Any] = {}
        store = zarr.storage.MemoryStore(store_dict=made)
        if specs[0].member:
            zarr.create_group(store=store)
        for spec in specs:
            zarr.create_array(
                store=store,
                name=spec.member or None,
                shape=spec.shape,
                chunks=spec.chunk,
                shards=spec.shard,
                dtype=spec.dtype,
                fill_value=0,
                # Of the whole chunk, so that a damaged one is noticed.
                compressors=zarr.codecs.ZstdCodec(level=1, checksum=True),
                dimension_names=[letter.lower() for letter in spec.axes],
            )
        return {name: bytes(content.to_bytes()).decode() for name, content in made.items()}


def open_described(path: Path, documents: dict[str, str], member: str) -> Any:  # noqa: ANN401 (a zarr.Array)
    """Open an array for writing that has no description of its own yet, only chunks.

    As long as a folder lacks its description, no program reads it as an array.
    """
    with zarr_package(path) as zarr:
        content = {name: zarr.core.buffer.cpu.Buffer.from_bytes(text.encode()) for name, text in documents.items()}
        memory = zarr.storage.MemoryStore(store_dict=content, read_only=True)
        described = zarr.open_array(store=memory, path=member, mode="r")
        place = zarr.storage.StorePath(open_store(zarr, path, read_only=False), member)
        # Chunks of zeros are written too, so that every missing chunk is one that was forgotten.
        return zarr.Array(
            zarr.AsyncArray(metadata=described.metadata, store_path=place, config={"write_empty_chunks": True})
        )


def write_descriptions(
    path: Path,
    documents: dict[str, str],
    specs: tuple[ArraySpec, ...],
    image: StoredImage,
    windows: list[tuple[float, float]],
) -> None:
    """Write the descriptions that turn a folder of chunks into an array or an image; that of the folder comes last."""
    attributes: dict[str, Any] = {records.KEYWORD: image.record or {}}
    if specs[0].member:
        members = [spec.member for spec in specs]
        attributes |= zarr_ome.group_attributes(members, image.axes, image.metadata, windows)
    root = json.loads(documents[FORMAT_FILE])
    root["attributes"] = root.get("attributes", {}) | attributes
    complete = documents | {FORMAT_FILE: json.dumps(root, allow_nan=False, indent=2)}
    for name in sorted(complete, key=lambda name: -name.count("/")):
        write_member(path / name, complete[name].encode())


def channel_windows(parts: list[Array], axes: str) -> list[tuple[float, float]]:
    """Compute the least and the largest value of each channel, or of all samples where there is no axis of them."""
    place = axes.find("C")
    by_channel = [np.moveaxis(part, place, 0) if place >= 0 else part[None] for part in parts]
    lows = np.concatenate([part.reshape(len(part), -1).min(axis=1) for part in by_channel])
    highs = np.concatenate([part.reshape(len(part), -1).max(axis=1) for part in by_channel])
    return [(float(low), float(high)) for low, high in zip(lows, highs, strict=True)]


def build_levels(open_level: Callable[[int], Any], n_levels: int, axes: str) -> None:
    """Compute all resolutions but the first, each from the one before, one file at a time.

    Args:
        open_level: opens a resolution by its number, 0 the full one, for reading and writing.
        n_levels: number of resolutions.
        axes: letters of the axes.
    """
    factors = [2 if letter in "YX" else 1 for letter in axes]
    for level in range(1, n_levels):
        larger, smaller = open_level(level - 1), open_level(level)
        for region in _each_unit(smaller):
            doubled = tuple(slice(part.start * n, part.stop * n) for part, n in zip(region, factors, strict=True))
            smaller[region] = halve(larger[doubled], axes)


def _each_unit(array: Any) -> Iterator[tuple[slice, ...]]:  # noqa: ANN401 (a zarr.Array)
    """List the regions of an array that lie in one file each; written one at a time, a failure leaves none pending."""
    axes = zip(array.shape, array.shards or array.chunks, strict=True)
    return itertools.product(*([slice(a, min(a + unit, n)) for a in range(0, n, unit)] for n, unit in axes))


def halve(samples: Array, axes: str) -> Array:
    """Average two by two pixels along Y and X; the last one of an odd side is averaged along the other axis alone.

    Whole numbers are rounded, half to even.
    """
    values = samples.astype(np.float64)
    for place in (i for i, letter in enumerate(axes) if letter in "YX"):
        odd = values.shape[place] % 2
        padded = np.pad(values, [(0, odd if i == place else 0) for i in range(values.ndim)], mode="edge")
        pairs = padded.reshape(*padded.shape[:place], -1, 2, *padded.shape[place + 1 :])
        values = pairs.mean(axis=place + 1)
    rounded = np.rint(values) if samples.dtype.kind in "ui" else values
    found: Array = rounded.astype(samples.dtype)
    return found
