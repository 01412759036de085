"""Writing a Zarr: its chunks and its descriptions, whole or by parts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deconv_cli.errors import FileAccessError
from deconv_cli.io import records
from deconv_cli.io.atomic import partial_path
from deconv_cli.io.codec import StoredImage, zeros_of
from deconv_cli.io.codecs import zarr_ome
from deconv_cli.io.codecs.zarr_source import HALF_WRITTEN, NAME, count_missing, zarr_package
from deconv_cli.io.files import list_members, read_member, refuse_special, refusing_damage, remove, write_member
from deconv_cli.io.layout import Array
from deconv_cli.io.metadata import Metadata
from deconv_cli.io.region_arrays import Region, RegionTarget, put_in_place, refusing_to_write

FORMAT_FILE = "zarr.json"
"""The description of an array or a group, in the folder of each."""
_CHUNKS = {"YX": 512, "ZYX": 256}
"""Rows and columns of a chunk of planes and of stacks, which are cut along Z too."""
_DEPTH = 32
_PLAN = "plan.json"
"""Marks a folder of chunks of an unfinished result, and describes that result."""


def member_of(metadata: Metadata) -> str:
    """Name the array of an image in its group; a bare array has no name."""
    return "0" if metadata.flavor == zarr_ome.FLAVOR else ""


def default_chunk(shape: tuple[int, ...], axes: str) -> tuple[int, ...]:
    """Choose chunks of one to eight million bytes: planes, or stacks if there is depth."""
    sizes = dict(zip(axes, shape, strict=True))
    if not {"Y", "X"} <= set(axes):
        return tuple(min(n, 2**20) if i + 1 == len(shape) else 1 for i, n in enumerate(shape))
    side = _CHUNKS["ZYX" if sizes.get("Z", 1) > 1 else "YX"]
    largest = {"Z": _DEPTH, "Y": side, "X": side}
    return tuple(min(n, largest.get(letter, 1)) for letter, n in zip(axes, shape, strict=True))


def describe_array(
    path: Path, image: StoredImage, chunk: tuple[int, ...], shard: tuple[int, ...] | None = None
) -> dict[str, str]:
    """Return the description of an array, and of the group around it, as texts by file name.

    The samples of a chunk are compressed together, and those of a shard lie in one file; without shards each chunk has
    its own file.
    """
    with zarr_package(path) as zarr:
        made: dict[str, Any] = {}
        store = zarr.storage.MemoryStore(store_dict=made)
        member = member_of(image.metadata)
        if member:
            zarr.create_group(store=store)
        zarr.create_array(
            store=store,
            name=member or None,
            shape=image.shape,
            chunks=chunk,
            shards=shard,
            dtype=image.dtype,
            fill_value=0,
            # Of the whole chunk, so that a damaged one is noticed.
            compressors=zarr.codecs.ZstdCodec(level=1, checksum=True),
            dimension_names=[letter.lower() for letter in image.axes],
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
        place = zarr.storage.StorePath(zarr.storage.LocalStore(path), member)
        # Chunks of zeros are written too, so that every missing chunk is one that was forgotten.
        return zarr.Array(
            zarr.AsyncArray(metadata=described.metadata, store_path=place, config={"write_empty_chunks": True})
        )


def write_descriptions(path: Path, documents: dict[str, str], image: StoredImage) -> None:
    """Write the descriptions that turn a folder of chunks into an array or an image; that of the folder comes last."""
    attributes: dict[str, Any] = {records.KEYWORD: image.record or {}}
    if member := member_of(image.metadata):
        windows = _windows(open_described(path, documents, member), image.axes)
        attributes |= zarr_ome.group_attributes(member, image.axes, image.metadata, windows)
    root = json.loads(documents[FORMAT_FILE])
    root["attributes"] = root.get("attributes", {}) | attributes
    complete = documents | {FORMAT_FILE: json.dumps(root, allow_nan=False, indent=2)}
    for name in sorted(complete, key=lambda name: -name.count("/")):
        write_member(path / name, complete[name].encode())


def _windows(array: Any, axes: str) -> list[tuple[float, float]]:  # noqa: ANN401 (a zarr.Array)
    """Estimate the least and the largest value of each channel from the file of samples in the middle."""
    units = zip(array.shape, array.shards or array.chunks, strict=True)
    middle = [slice(n // 2 // unit * unit, n // 2 // unit * unit + unit) for n, unit in units]
    place, found = axes.find("C"), []
    for channel in range(array.shape[place] if place >= 0 else 1):
        region = [slice(channel, channel + 1) if i == place else part for i, part in enumerate(middle)]
        samples = array[tuple(region)]
        found.append((float(samples.min()), float(samples.max())))
    return found


def each_unit(array: Any) -> Iterator[tuple[slice, ...]]:  # noqa: ANN401 (a zarr.Array)
    """List the regions of an array that lie in one file each; written one at a time, a failure leaves none pending."""
    axes = zip(array.shape, array.shards or array.chunks, strict=True)
    return itertools.product(*([slice(a, min(a + unit, n)) for a in range(0, n, unit)] for n, unit in axes))


@dataclass(frozen=True, eq=False)
class ZarrTarget(RegionTarget):
    """The chunks of an unfinished Zarr, in a folder of a hidden name."""

    documents: tuple[tuple[str, str], ...] = ()
    """The descriptions of the array and its group, by their names."""
    metadata: Metadata = field(default_factory=Metadata)

    @property
    def folder(self) -> Path:
        """The folder of the chunks."""
        return partial_path(self.path)

    def create(self) -> bool:
        """Write the plan; chunks of an earlier run stay if its plan was the same."""
        plan = json.dumps(self.documents).encode()
        with refusing_to_write(self.path):
            if self.folder.is_symlink():
                remove(self.folder)
            refuse_special(self.folder / _PLAN)
            before = read_member(self.folder / _PLAN) if self.is_begun() else None
            if before == plan:
                return True
            # Another plan is that of another run; data without a plan are a finished result. Both are removed: another
            # process of this run would have written this plan.
            if before is not None or (self.folder / FORMAT_FILE).is_file():
                remove(self.folder)
            write_member(self.folder / _PLAN, plan)
            return False

    def read(self, region: Region) -> Array:
        """Read chunks that were written."""
        with refusing_damage(self.path, f"a {NAME}"):
            found: Array = np.asarray(self._open(self.folder if self.is_begun() else self.path)[region])
            return found

    def is_begun(self) -> bool:
        """Look for the plan."""
        return (self.folder / _PLAN).is_file()

    def write(self, region: Region, samples: Array) -> None:
        """Write whole chunks or shards."""
        self.check_units(region)
        with refusing_to_write(self.path):
            self._open(self.folder)[region] = samples

    def finish(self, record: dict[str, Any]) -> None:
        """Write the descriptions, and rename the folder."""
        complete = records.without_folders(records.complete_record(record, self.shape, self.dtype, None))
        image = StoredImage(zeros_of(self.shape, self.dtype), self.axes, self.metadata, record=complete)
        with refusing_to_write(self.path):
            n_missing, n_files = count_missing(self.folder / member_of(self.metadata), self.shape, self.unit)
            if n_missing:  # they would be read as zeros
                raise FileAccessError(
                    f"'{self.path}' should have {n_files} files of samples, but {n_missing} are missing in "
                    f"'{self.folder}'; run again to write them."
                )
            write_descriptions(self.folder, dict(self.documents), image)
            for name in [name for name, *_ in list_members(self.folder) if name.endswith(HALF_WRITTEN)]:
                remove(self.folder / name)
            put_in_place(self.path)
            remove(self.path / _PLAN)  # the last step: as long as the plan is there, a resumed run does all this again

    def discard(self) -> None:
        """Remove the chunks."""
        with refusing_to_write(self.path):
            remove(self.folder)

    def _open(self, folder: Path) -> Any:  # noqa: ANN401 (a zarr.Array)
        return open_described(folder, dict(self.documents), member_of(self.metadata))
