"""Zarr: one array in a folder of chunks, or OME-Zarr, an image with its axes, distances, channels and resolutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deconv_cli.errors import UsageError
from deconv_cli.io import limits, records
from deconv_cli.io.codec import Array, Codec, WriteRequest, from_images
from deconv_cli.io.codecs import zarr_ome
from deconv_cli.io.codecs.zarr_description import describe_zarr
from deconv_cli.io.codecs.zarr_library import (
    ArraySpec,
    describe_arrays,
    each_unit,
    open_described,
    open_stored,
    with_attributes,
)
from deconv_cli.io.folders import write_member
from deconv_cli.io.layout import Layout
from deconv_cli.io.samples import working_bytes
from deconv_cli.io.sources import FOLDER
from deconv_cli.io.stored_image import Metadata, StoredImage

OME_SUFFIX = ".ome.zarr"
_CHUNKS = {"YX": 512, "ZYX": 256}
"""Rows and columns of a chunk of planes and of stacks, which are cut along Z too."""
_DEPTH = 32


class Zarr(Codec):
    """Zarr 2 and 3 in, Zarr 3 out; OME-Zarr where the name ends in .ome.zarr, and for pictures of other formats."""

    name = "Zarr"
    suffixes = (".zarr",)
    magic = (FOLDER,)
    has_levels = True
    is_folder = True
    record_inside = True
    carries = frozenset({"resolution", "channel_names"})
    selects = "series"

    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read an array, or the full resolution of an image."""
        found = describe_zarr(path, None if member is None else int(member))
        limits.check_expansion(path, working_bytes(found.shape, np.dtype(found.dtype)), found.n_stored)
        samples = np.asarray(open_stored(path, found.member)[...])
        return StoredImage(
            samples=samples.astype(samples.dtype.newbyteorder("="), copy=False),
            axes=found.axes,
            metadata=found.metadata,
            record=found.record,
            notes=found.notes,
        )

    def check(self, request: WriteRequest) -> None:
        """Refuse what OME-Zarr has no axes for, where the name asks for it, and several resolutions of what is none."""
        if is_ome(request):
            _check_levels(request)
            return
        if is_ome_name(request.path):
            raise UsageError(
                f"'{request.path}' cannot hold axes {request.layout.axes}, since OME-Zarr knows T and Z beside "
                "channels and planes; choose .zarr."
            )
        if request.n_levels > 1:
            raise UsageError(
                f"'{request.path}' cannot hold several resolutions, since it would be a bare array; choose .ome.zarr."
            )

    def arrange(self, request: WriteRequest, samples: Array, alpha: Array | None) -> StoredImage:
        """Keep the axes of an array, and order those of an image as OME-Zarr wants them."""
        layout = request.layout_of_result(samples.shape[1], samples.shape[2:])
        layout, axes, notes = order_axes(request, layout)
        return StoredImage(from_images(layout, samples), axes, notes=notes, n_levels=request.n_levels)

    def carry(self, request: WriteRequest, image: StoredImage) -> tuple[Metadata, list[str]]:
        """Choose the metadata; a bare array has none."""
        kept, lost = super().carry(request, image)
        if is_ome(request):
            return replace(kept, flavor=zarr_ome.FLAVOR), lost
        lost += [
            name for name, value in (("resolution", kept.resolution), ("channel names", kept.channel_names)) if value
        ]
        return Metadata(), [*lost, *kept.native, *kept.native_of_channels]

    def write(self, path: Path, image: StoredImage) -> None:
        """Write all chunks, and then what describes them."""
        specs = plan_arrays(image)
        documents = describe_arrays(path, specs, {})
        samples = np.asarray(image.samples)
        array = open_described(path, documents, specs[0].member)
        for region in each_unit(array):
            array[region] = samples[region]
        build_levels(lambda level: open_described(path, documents, specs[level].member), len(specs), image.axes)
        write_descriptions(path, documents, specs, image, channel_windows([samples], image.axes))


ZARR = Zarr()


def is_ome_name(path: Path) -> bool:
    """Check whether a name asks for OME-Zarr."""
    return path.name.lower().endswith(OME_SUFFIX)


def is_ome(request: WriteRequest) -> bool:
    """Decide whether OME-Zarr is written: where the name asks for it, or the source is a picture, if the axes fit."""
    was_array = request.source_format == Zarr.name and request.flavor != zarr_ome.FLAVOR
    is_wanted = is_ome_name(request.path) or (request.from_picture and not was_array)
    letters = _renamed(request.layout.axes)
    return is_wanted and {"Y", "X"} <= set(letters) <= set(zarr_ome.AXES) and len(set(letters)) == len(letters)


def order_axes(request: WriteRequest, layout: Layout) -> tuple[Layout, str, tuple[str, ...]]:
    """Order the axes of a result as it will be stored; gives its letters, and what is to be said of these."""
    if not is_ome(request):
        return layout, layout.axes, ()
    renamed = _renamed(layout.axes)
    order = sorted(range(len(renamed)), key=lambda place: zarr_ome.AXES.index(renamed[place]))
    ordered = replace(layout, axes="".join(layout.axes[i] for i in order), sizes=tuple(layout.sizes[i] for i in order))
    axes = "".join(renamed[i] for i in order)
    new = [b for a, b in zip(layout.axes, renamed, strict=True) if a not in (b, "S")]
    return ordered, axes, tuple(f"a batch axis was named {letter}" for letter in new)


def plan_arrays(
    image: StoredImage, chunk: tuple[int, ...] | None = None, shard: tuple[int, ...] | None = None
) -> tuple[ArraySpec, ...]:
    """Decide how an image is cut, at each resolution; a bare array has one, and no name."""
    if image.metadata.flavor != zarr_ome.FLAVOR:
        return (_spec("", image.shape, image, chunk, shard),)
    shapes = [image.shape]
    for _ in range(1, image.n_levels):
        shapes.append(half_shape(shapes[-1], image.axes))
    return tuple(_spec(str(level), shape, image, chunk, shard) for level, shape in enumerate(shapes))


def write_descriptions(
    path: Path,
    documents: dict[str, str],
    specs: tuple[ArraySpec, ...],
    image: StoredImage,
    windows: list[tuple[float, float]],
) -> None:
    """Write what makes of a folder of chunks an array or an image: last of all that of the folder itself."""
    attributes: dict[str, Any] = {records.KEYWORD: image.record or {}}
    if specs[0].member:
        members = [spec.member for spec in specs]
        attributes |= zarr_ome.group_attributes(members, image.axes, image.metadata, windows)
    complete = with_attributes(documents, attributes)
    for name in sorted(complete, key=lambda name: -name.count("/")):
        write_member(path / name, complete[name].encode())


def channel_windows(parts: list[Array], axes: str) -> list[tuple[float, float]]:
    """Give the least and the largest value of each channel, or of all samples where there is no axis of them."""
    place = axes.find("C")
    by_channel = [np.moveaxis(part, place, 0) if place >= 0 else part[None] for part in parts]
    lows = np.concatenate([part.reshape(len(part), -1).min(axis=1) for part in by_channel])
    highs = np.concatenate([part.reshape(len(part), -1).max(axis=1) for part in by_channel])
    return [(float(low), float(high)) for low, high in zip(lows, highs, strict=True)]


def _check_levels(request: WriteRequest) -> None:
    """Refuse by `UsageError` more resolutions than there are down to a single pixel."""
    longest = max(
        size for letter, size in zip(request.layout.axes, request.layout.sizes, strict=True) if letter in "YX"
    )
    n_most = 1 + (longest - 1).bit_length()
    if request.n_levels > n_most:
        raise UsageError(
            f"'{request.path}' should hold {request.n_levels} resolutions, but an image of {longest} pixels a side has "
            f"{n_most}."
        )


def _renamed(axes: str) -> str:
    """Make channels of colors, and times (or planes) of a batch axis that OME-Zarr has no word for."""
    axes = axes if "C" in axes else axes.replace("S", "C")
    free = [letter for letter in "TZ" if letter not in axes]
    return "".join(free.pop(0) if letter not in zarr_ome.AXES and free else letter for letter in axes)


def _spec(
    member: str,
    shape: tuple[int, ...],
    image: StoredImage,
    chunk: tuple[int, ...] | None,
    shard: tuple[int, ...] | None,
) -> ArraySpec:
    chunk = chunk or default_chunk(image.shape, image.axes)
    return ArraySpec(member, shape, chunk, shard, image.dtype, image.axes)


def default_chunk(shape: tuple[int, ...], axes: str) -> tuple[int, ...]:
    """Give chunks of one to eight million bytes: of planes, or of stacks where there is depth."""
    sizes = dict(zip(axes, shape, strict=True))
    if not {"Y", "X"} <= set(axes):
        return tuple(min(n, 2**20) if i + 1 == len(shape) else 1 for i, n in enumerate(shape))
    side = _CHUNKS["ZYX" if sizes.get("Z", 1) > 1 else "YX"]
    largest = {"Z": _DEPTH, "Y": side, "X": side}
    return tuple(min(n, largest.get(letter, 1)) for letter, n in zip(axes, shape, strict=True))


def half_shape(shape: tuple[int, ...], axes: str) -> tuple[int, ...]:
    """Give the shape of the next resolution; an odd side keeps its last pixel."""
    return tuple((size + 1) // 2 if a in "YX" else size for size, a in zip(shape, axes, strict=True))


def build_levels(open_level: Callable[[int], Any], n_levels: int, axes: str) -> None:
    """Compute all resolutions but the first, each from the one before, one file at a time.

    Args:
        open_level: opens a resolution by its number, 0 the full one, for reading and writing.
        n_levels: how many there are.
        axes: letters of the axes.
    """
    for level in range(1, n_levels):
        larger, smaller = open_level(level - 1), open_level(level)
        for region in each_unit(smaller):
            smaller[region] = halve(larger[_doubled(region, axes)], axes)


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


def _doubled(region: tuple[slice, ...], axes: str) -> tuple[slice, ...]:
    """Give the region of the larger resolution; where it ends beyond, it is cut."""
    factors = [2 if letter in "YX" else 1 for letter in axes]
    return tuple(slice(part.start * n, part.stop * n) for part, n in zip(region, factors, strict=True))
