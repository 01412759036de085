"""Large arrays in NumPy .npy files: a part is read, or written, row by row."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from deconv_cli.errors import UsageError
from deconv_cli.io import records
from deconv_cli.io.atomic import write_line_beside
from deconv_cli.io.codec import Array, WriteRequest, not_carried
from deconv_cli.io.codecs.npy import NPY, read_layout
from deconv_cli.io.hidden_names import partial_path
from deconv_cli.io.layout import Layout
from deconv_cli.io.regions.partial_file import PartialFile, put_in_place, refusing_to_write
from deconv_cli.io.regions.region_source import Region, RegionSource, fingerprint_of_file, shape_of
from deconv_cli.io.regions.region_target import RegionFormat, RegionTarget
from deconv_cli.io.sources import refusing_damage
from deconv_cli.io.stored_image import StoredImage, zeros_of
from deconv_cli.io.tensors import order_axes

NAME = "NumPy .npy"
_PIECE = 2**24
"""Bytes that are hashed at a time."""


@dataclass(frozen=True, eq=False)
class NpySource(RegionSource):
    """An array of a `.npy` file."""

    start: int = 0
    """Byte at which the samples begin."""
    stored_type: str = ""
    """NumPy name of the sample type with its byte order."""
    order: Literal["C", "F"] = "C"

    @staticmethod
    def open(path: Path, axes: str = "") -> NpySource:
        """Read the header, and compare what it promises with the size of the file.

        Raises:
            UnsafeInputError: an array of Python objects.
            MalformedInputError: damaged, shorter than promised, or of elements without a size.
        """
        with refusing_damage(path, f"a {NAME} file"), path.open("rb") as stream:
            layout = read_layout(path, stream, path.stat().st_size)
        shape = layout.shape
        record = records.matching_record(records.read_beside(path), shape)
        # What lies together in the file is read together: rows, or columns.
        chunk = tuple(n if i == (0 if layout.is_fortran else len(shape) - 1) else 1 for i, n in enumerate(shape))
        return NpySource(
            path=path,
            format_name=NAME,
            shape=shape,
            dtype=layout.dtype.newbyteorder("=").name,
            axes=axes or records.recorded_axes(record),
            chunk=chunk,
            is_picture=False,
            record=record,
            start=layout.start,
            stored_type=layout.dtype.str,
            order="F" if layout.is_fortran else "C",
        )

    def read(self, region: Region) -> Array:
        """Read a part."""
        with refusing_damage(self.path, f"a {NAME} file"):
            if self.order == "C" and self.shape:
                return self._read_rows(region)
            mapped = np.memmap(self.path, self.stored_type, "r", self.start, self.shape, self.order)
            found: Array = np.array(mapped[region], dtype=np.dtype(self.dtype), order="C")
            return found

    def _read_rows(self, region: Region) -> Array:
        n_run, starts = contiguous_runs(self.shape, region)
        found = np.empty(shape_of(region), self.stored_type)
        rows = found.reshape(-1, n_run)
        with self.path.open("rb", buffering=0) as stream:
            for row, start in zip(rows, starts, strict=True):
                stream.seek(self.start + start * found.itemsize)
                if stream.readinto(row.view(np.uint8).data) != row.nbytes:
                    raise ValueError("it ends before its last sample")
        return found.astype(self.dtype, copy=False)

    def fingerprint(self) -> str:
        """Hash what the header says, with size and time of the file."""
        return fingerprint_of_file(self.path, self.shape, self.stored_type, self.order, self.start)


@dataclass(frozen=True, eq=False)
class NpyTarget(PartialFile):
    """A `.npy` file in the making: one of its final size and a hidden name, into which every writer writes its rows."""

    def _make(self, own: Path) -> None:
        np.lib.format.open_memmap(own, "w+", np.dtype(self.dtype).newbyteorder("<"), self.shape)

    def _without_samples(self, new: Path) -> list[tuple[int, int]]:
        return [(0, new.stat().st_size - self.n_bytes)]

    def read(self, region: Region) -> Array:
        """Read a part that was written."""
        return NpySource.open(self._written).read(region)

    def write(self, region: Region, samples: Array) -> None:
        """Write a part."""
        n_run, starts = contiguous_runs(self.shape, region)
        rows = np.ascontiguousarray(samples, np.dtype(self.dtype).newbyteorder("<")).reshape(-1, n_run)
        with refusing_to_write(self.path), partial_path(self.path).open("rb+", buffering=0) as stream:
            first = _skip_header(stream)
            for row, start in zip(rows, starts, strict=True):
                stream.seek(first + start * rows.itemsize)
                if stream.write(row.data) != row.nbytes:
                    raise OSError("the disk is full")

    def finish(self, record: dict[str, Any]) -> None:
        """Hash the samples, write the record beside, and give the file its name."""
        with refusing_to_write(self.path):
            digest = self._digest()
        complete = records.complete_record(record, self.shape, self.dtype, digest)
        # The record first: as long as the hidden file is there, a run that is gone on with does both again.
        write_line_beside(records.beside(self.path), records.seal_record(records.finite(complete)), lambda: None)
        with refusing_to_write(self.path):
            put_in_place(self.path)

    def _digest(self) -> str:
        """Hash all samples, a piece at a time; the same as `records.samples_digest` of the whole."""
        found = hashlib.sha256()
        with partial_path(self.path).open("rb") as stream:
            _skip_header(stream)
            while piece := stream.read(_PIECE):
                found.update(piece)
        return found.hexdigest()


def _skip_header(stream: BinaryIO) -> int:
    """Go to the first sample of a file that was made here; gives its place."""
    np.lib.format.read_magic(stream)
    np.lib.format.read_array_header_1_0(stream)
    return stream.tell()


class NpyRegions(RegionFormat):
    """Arrays without a name, of any size."""

    def open(self, path: Path, member: str | int | None) -> RegionSource:
        """Open the only array that there is."""
        if member is not None:
            raise UsageError(
                f"'{path}' holds a single tensor without a name, so tensor=\"{member}\" has no choice to make."
            )
        return NpySource.open(path)

    def plan(self, request: WriteRequest, layout: Layout, source: RegionSource) -> RegionTarget:
        """Order the axes as those of any tensor; parts may end anywhere."""
        layout, notes = order_axes(request, layout)
        _, lost = NPY.carry(request, StoredImage(zeros_of(layout.sizes, request.dtype), layout.axes, source.metadata))
        return NpyTarget(
            path=request.path,
            shape=layout.sizes,
            dtype=request.dtype,
            axes=layout.axes,
            unit=tuple(1 for _ in layout.sizes),
            notes=(*notes, *not_carried(lost)),
        )


NPY_REGIONS = NpyRegions()


def contiguous_runs(shape: tuple[int, ...], region: Region) -> tuple[int, Iterator[int]]:
    """Give the length of the runs of samples that a part is made of, and where each begins, counted in samples.

    Reading and writing run by run takes no more memory than the part; of a map of the file into memory the system
    keeps, and writes back, whole stretches around every row.
    """
    axis = len(shape) - 1
    while axis > 0 and region[axis] == slice(0, shape[axis]):
        axis -= 1
    inner = math.prod(shape[axis + 1 :])

    def starts() -> Iterator[int]:
        for lead in product(*(range(part.start, part.stop) for part in region[:axis])):
            place = 0
            for index, n in zip(lead, shape, strict=False):
                place = place * n + index
            yield (place * shape[axis] + region[axis].start) * inner

    return (region[axis].stop - region[axis].start) * inner, starts()
