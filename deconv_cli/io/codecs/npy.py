"""NumPy .npy, and .npz, a zip archive of them: sizes are checked before anything is allocated, objects are refused."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from deconv_cli.errors import MalformedInputError, UnsafeInputError
from deconv_cli.io.codec import Array
from deconv_cli.io.limits import array_bytes, check_expansion, check_zip
from deconv_cli.io.samples import working_bytes
from deconv_cli.io.stored_image import StoredImage
from deconv_cli.io.tensors import IMAGE_NAME, TensorCodec, TensorFile


class Npy(TensorCodec):
    """Files of one array without a name."""

    name = "NumPy .npy"
    suffixes = (".npy",)
    magic = (b"\x93NUMPY",)

    def list_tensors(self, path: Path) -> TensorFile:
        """Read the header, and give the way to the array."""
        with path.open("rb") as stream:
            shape = read_header(path, stream, path.stat().st_size)

        def read(_: str) -> Array:
            with path.open("rb") as stream:
                return read_array(stream)

        return TensorFile(path, {"": shape}, read)

    def write(self, path: Path, image: StoredImage) -> None:
        """Write the bare array."""
        with path.open("wb") as stream:
            np.save(stream, np.ascontiguousarray(image.samples), allow_pickle=False)


NPY = Npy()


@dataclass(frozen=True)
class NpyLayout:
    """What the header of an array says of it.

    Attributes:
        shape: of the array.
        dtype: with its byte order.
        is_fortran: whether the first axis runs fastest.
        start: byte at which the samples begin.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    is_fortran: bool
    start: int


def read_layout(path: Path, stream: IO[bytes], n_bytes: int) -> NpyLayout:
    """Read the header of an array of `n_bytes` with its header, and compare what it promises with what is there.

    Raises:
        UnsafeInputError: an array of Python objects.
        MalformedInputError: shorter than promised, or of elements without a size.
    """
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
    return NpyLayout(tuple(int(size) for size in shape), dtype, is_fortran, stream.tell())


def read_header(path: Path, stream: IO[bytes], n_bytes: int) -> tuple[int, ...]:
    """Read the shape of an array as `read_layout` does, to read all of it.

    Raises:
        UnsafeInputError: an array of Python objects.
        MalformedInputError: shorter than promised, or of elements without a size.
        TooLargeError: larger than the memory allows.
    """
    layout = read_layout(path, stream, n_bytes)
    check_expansion(path, working_bytes(layout.shape, layout.dtype), path.stat().st_size)
    return layout.shape


def read_array(stream: IO[bytes]) -> Array:
    """Read an array, in native byte order, whose header `read_header` has checked."""
    array: Array = np.lib.format.read_array(stream, allow_pickle=False)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


_ENTRY = ".npy"


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
                    shapes[entry.removesuffix(_ENTRY)] = read_header(path, stream, n_bytes)

        def read(name: str) -> Array:
            with archive.open(name + _ENTRY) as stream:
                found = read_array(stream)
                # Only reading on to the end compares the checksum of the entry.
                stream.read()
                return found

        return TensorFile(path, shapes, read)

    def write(self, path: Path, image: StoredImage) -> None:
        """Write the bare array under one name."""
        with path.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **{IMAGE_NAME: np.ascontiguousarray(image.samples)})


NPZ = Npz()
