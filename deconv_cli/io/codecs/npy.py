"""NumPy .npy, whole or row by row, and .npz, a zip archive of them: sizes are checked, objects are refused."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal

import numpy as np

from deconv_cli.errors import MalformedInputError, UnsafeInputError, UsageError
from deconv_cli.io import records
from deconv_cli.io.atomic import partial_path, write_line_beside
from deconv_cli.io.codec import Array, StoredImage, WriteRequest
from deconv_cli.io.files import refusing_damage
from deconv_cli.io.layout import Layout
from deconv_cli.io.limits import array_bytes, check_expansion, check_zip
from deconv_cli.io.partial_file import PartialFile, put_in_place, refusing_to_write
from deconv_cli.io.regions import Region, RegionFormat, RegionSource, RegionTarget, fingerprint_of_file, shape_of
from deconv_cli.io.samples import working_bytes
from deconv_cli.io.tensors import IMAGE_NAME, TensorCodec, TensorFile

_ENTRY = ".npy"
_PIECE = 2**24
"""Bytes that are hashed at a time."""


class Npy(TensorCodec):
    """Files of one array without a name."""

    name = "NumPy .npy"
    suffixes = (".npy",)
    magic = (b"\x93NUMPY",)

    def list_tensors(self, path: Path) -> TensorFile:
        """Read the header; the array is read later."""
        with path.open("rb") as stream:
            shape = _checked_shape(path, stream, path.stat().st_size)

        def read(_: str) -> Array:
            with path.open("rb") as stream:
                return _read_array(stream)

        return TensorFile(path, {"": shape}, read)

    def write(self, path: Path, image: StoredImage) -> None:
        """Write the bare array."""
        with path.open("wb") as stream:
            np.save(stream, np.ascontiguousarray(image.samples), allow_pickle=False)


NPY = Npy()


class Npz(TensorCodec):
    """Files of named arrays."""

    name = "NumPy .npz"
    suffixes = (".npz",)
    magic = (b"PK\x03\x04",)

    def list_tensors(self, path: Path) -> TensorFile:
        """Read the header of every array."""
        shapes = {}
        entries = check_zip(path)
        archive = zipfile.ZipFile(path)  # once: the directory of thousands of entries takes long to read
        for entry in entries:
            if entry.endswith(_ENTRY):
                with archive.open(entry) as stream:
                    n_bytes = archive.getinfo(entry).file_size
                    shapes[entry.removesuffix(_ENTRY)] = _checked_shape(path, stream, n_bytes)

        def read(name: str) -> Array:
            with archive.open(name + _ENTRY) as stream:
                found = _read_array(stream)
                # Only reading on to the end compares the checksum of the entry.
                stream.read()
                return found

        return TensorFile(path, shapes, read)

    def write(self, path: Path, image: StoredImage) -> None:
        """Write the bare array under one name."""
        with path.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **{IMAGE_NAME: np.ascontiguousarray(image.samples)})


NPZ = Npz()


def _read_header(path: Path, stream: IO[bytes], n_bytes: int) -> tuple[tuple[int, ...], np.dtype[np.generic], bool]:
    """Check the header of an array in `n_bytes`; return shape, type, and whether the first axis runs fastest."""
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"version {version} of the format")
    shape, is_fortran, dtype = read(stream)
    if dtype.hasobject:
        raise UnsafeInputError(
            f"'{path}' should hold numbers, but holds Python objects, which are not opened; save a numeric array."
        )
    if not dtype.itemsize:
        raise MalformedInputError(f"'{path}' should hold real numbers, but its samples are {dtype}; convert it first.")
    n_promised, n_stored = array_bytes(shape, dtype.itemsize), n_bytes - stream.tell()
    if n_promised > n_stored:
        raise MalformedInputError(
            f"'{path}' promises an array of shape {str(shape)[:80]} ({n_promised} bytes), but holds {n_stored} bytes "
            "of it; copy it again."
        )
    return tuple(int(size) for size in shape), dtype, is_fortran


def _checked_shape(path: Path, stream: IO[bytes], n_bytes: int) -> tuple[int, ...]:
    """Read the shape of an array that will be read as a whole; refuse one that is larger than the memory allows."""
    shape, dtype, _ = _read_header(path, stream, n_bytes)
    check_expansion(path, working_bytes(shape, dtype), path.stat().st_size)
    return shape


def _read_array(stream: IO[bytes]) -> Array:
    array: Array = np.lib.format.read_array(stream, allow_pickle=False)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


@dataclass(frozen=True, eq=False)
class NpySource(RegionSource):
    """An array of a `.npy` file."""

    start: int = 0
    """Byte at which the samples begin."""
    stored_type: str = ""
    """NumPy name of the sample type with its byte order."""
    order: Literal["C", "F"] = "C"

    def read(self, region: Region) -> Array:
        """Read a part."""
        with refusing_damage(self.path, f"a {NPY.name} file"):
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
        """Hash the header, with size and time of the file."""
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
        return NPY_REGIONS.open(self._written, None).read(region)

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
        """Hash the samples, write the record beside, and rename the file."""
        digest = hashlib.sha256()  # as `records.samples_digest` of the whole
        with refusing_to_write(self.path), partial_path(self.path).open("rb") as stream:
            _skip_header(stream)
            while piece := stream.read(_PIECE):
                digest.update(piece)
        complete = records.complete_record(record, self.shape, self.dtype, digest.hexdigest())
        # The record first: as long as the hidden file is there, a resumed run does both again.
        write_line_beside(records.beside(self.path), records.seal_record(records.finite(complete)), lambda: None)
        with refusing_to_write(self.path):
            put_in_place(self.path)


def _skip_header(stream: BinaryIO) -> int:
    """Go to the first sample of a file that was made here; return its place."""
    np.lib.format.read_magic(stream)
    np.lib.format.read_array_header_1_0(stream)
    return stream.tell()


def contiguous_runs(shape: tuple[int, ...], region: Region) -> tuple[int, Iterator[int]]:
    """Compute the length of the runs of samples that a part consists of, and the start of each, in samples.

    Reading and writing run by run takes no more memory than the part. If the file were mapped into memory, the system
    would keep, and write back, whole stretches around every row.
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


class NpyRegions(RegionFormat):
    """Arrays without a name, of any size."""

    def open(self, path: Path, member: str | int | None) -> RegionSource:
        """Read the header, and compare what it promises with the size of the file."""
        if member is not None:
            raise UsageError(
                f"'{path}' holds a single tensor without a name, so tensor=\"{member}\" has no choice to make."
            )
        with refusing_damage(path, f"a {NPY.name} file"), path.open("rb") as stream:
            shape, dtype, is_fortran = _read_header(path, stream, path.stat().st_size)
            start = stream.tell()
        record = records.matching_record(records.read_beside(path), shape)
        # Rows, or columns, are stored together.
        chunk = tuple(n if i == (0 if is_fortran else len(shape) - 1) else 1 for i, n in enumerate(shape))
        return NpySource(
            *(path, NPY.name, shape, dtype.newbyteorder("=").name, records.recorded_axes(record), chunk),
            is_picture=False,
            record=record,
            start=start,
            stored_type=dtype.str,
            order="F" if is_fortran else "C",
        )

    def plan(self, request: WriteRequest, layout: Layout, source: RegionSource) -> RegionTarget:
        """Order the axes like those of any tensor; parts may end anywhere."""
        image = NPY.describe_result(request, layout, source.metadata)
        return NpyTarget(request.path, image.shape, request.dtype, image.axes, (1,) * len(image.axes), image.notes)


NPY_REGIONS = NpyRegions()
