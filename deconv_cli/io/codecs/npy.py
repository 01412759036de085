"""NumPy .npy, whole or by parts, and .npz, a zip archive of them: sizes are checked, objects are refused."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from deconv_cli.errors import MalformedInputError, UnsafeInputError, UsageError
from deconv_cli.io import records
from deconv_cli.io.atomic import partial_path, write_line_beside
from deconv_cli.io.codec import StoredImage, WriteRequest
from deconv_cli.io.files import refusing_damage
from deconv_cli.io.layout import Array, Layout, working_bytes
from deconv_cli.io.limits import array_bytes, check_expansion, check_zip
from deconv_cli.io.region_arrays import Region, RegionSource, RegionTarget, put_in_place, refusing_to_write
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

    def open_regions(self, path: Path, member: str | int | None) -> RegionSource:
        """Read the header, and compare what it promises with the size of the file."""
        if member is not None:
            raise UsageError(f"'{path}' holds a single tensor without a name; leave out tensor=\"{member}\".")
        with refusing_damage(path, f"a {self.name} file"), path.open("rb") as stream:
            shape, dtype, is_fortran = _read_header(path, stream, path.stat().st_size)
        record = records.matching_record(records.read_beside(path), shape)
        # Rows, or columns, are stored together.
        chunk = tuple(n if i == (0 if is_fortran else len(shape) - 1) else 1 for i, n in enumerate(shape))
        return NpySource(
            *(path, shape, dtype.newbyteorder("=").name, records.recorded_axes(record), self.name, chunk),
            is_picture=False,
            record=record,
        )

    def plan_regions(self, request: WriteRequest, layout: Layout, source: RegionSource) -> RegionTarget:
        """Order the axes like those of any tensor; parts may end anywhere."""
        image = self.describe_result(request, layout, source.metadata)
        return NpyTarget(request.path, image.shape, request.dtype, image.axes, (1,) * len(image.axes), image.notes)


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
            f"'{path}' should hold numbers, but holds Python objects, which deconv does not open; save a numeric array."
        )
    if not dtype.itemsize:
        raise MalformedInputError(f"'{path}' should hold real numbers, but its samples are {dtype}; convert it first.")
    n_promised, n_stored = array_bytes(shape, dtype.itemsize), n_bytes - stream.tell()
    if n_promised > n_stored:
        raise ValueError(f"it promises an array of {n_promised} bytes, but holds {n_stored} bytes of it")
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

    def read(self, region: Region) -> Array:
        """Read a part."""
        with refusing_damage(self.path, f"a {self.format_name} file"):
            mapped = np.lib.format.open_memmap(self.path, "r")
            if mapped.shape != self.shape:
                raise ValueError("its header has changed since it was opened")
            found: Array = np.array(mapped[region], dtype=np.dtype(self.dtype), order="C")
            return found


@dataclass(frozen=True, eq=False)
class NpyTarget(RegionTarget):
    """A `.npy` file in the making, into which every writer writes its rows."""

    def _make(self, own: Path) -> None:
        np.lib.format.open_memmap(own, "w+", np.dtype(self.dtype).newbyteorder("<"), self.shape)

    def _open(self, written: Path) -> RegionSource:
        return NPY.open_regions(written, None)

    def write(self, region: Region, samples: Array) -> None:
        """Write a part."""
        with refusing_to_write(self.path):
            np.lib.format.open_memmap(partial_path(self.path), "r+")[region] = samples

    def finish(self, record: dict[str, Any]) -> None:
        """Hash the samples, write the record beside, and rename the file."""
        digest = hashlib.sha256()  # as `records.samples_digest` of the whole
        with refusing_to_write(self.path), partial_path(self.path).open("rb") as stream:
            stream.seek(-self.n_bytes, 2)
            while piece := stream.read(_PIECE):
                digest.update(piece)
        complete = records.complete_record(record, self.shape, self.dtype, digest.hexdigest())
        # The record first: as long as the hidden file is there, a resumed run does both again.
        write_line_beside(records.beside(self.path), records.seal_record(records.finite(complete)), lambda: None)
        with refusing_to_write(self.path):
            put_in_place(self.path)
