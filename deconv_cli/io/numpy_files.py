"""Reading .npy and .npz files: sizes are checked before anything is allocated, objects are refused."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from deconv_cli.errors import MalformedInputError, UnsafeInputError
from deconv_cli.io.limits import check_budget, check_zip
from deconv_cli.io.sources import refusing_damage

Header = tuple[tuple[int, ...], np.dtype[np.generic]]


def read_npy(path: Path) -> npt.NDArray[np.generic]:
    """Read a .npy file.

    Raises:
        UnsafeInputError: an array of Python objects.
        MalformedInputError: damaged, or shorter than its header promises.
        TooLargeError: larger than the memory allows.
    """
    n_bytes = path.stat().st_size
    with path.open("rb") as stream, refusing_damage(path, "a .npy file"):
        _check_header(path, _header(stream), n_bytes - stream.tell())
        stream.seek(0)
        return _native(np.lib.format.read_array(stream, allow_pickle=False))


def npz_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """List the arrays of a .npz file with their shapes, after checking the sizes they promise.

    Raises:
        UnsafeInputError: an array of Python objects.
        MalformedInputError: damaged, or an entry that is shorter than its header promises.
        TooLargeError: larger than the memory allows, or a decompression bomb.
    """
    entries = check_zip(path)
    shapes = {}
    with refusing_damage(path, "a .npz file"), zipfile.ZipFile(path) as archive:
        for entry in entries:
            if entry.endswith(".npy"):
                with archive.open(entry) as stream:
                    shape, dtype = _header(stream)
                    left = archive.getinfo(entry).file_size - stream.tell()
                    _check_header(path, (shape, dtype), left)
                shapes[entry.removesuffix(".npy")] = shape
    if not shapes:
        raise MalformedInputError(f"'{path}' should hold NumPy arrays, but holds none.")
    return shapes


def read_npz(path: Path, name: str) -> npt.NDArray[np.generic]:
    """Read one array of a .npz file whose sizes `npz_shapes` has checked."""
    with refusing_damage(path, "a .npz file"), zipfile.ZipFile(path) as archive:
        with archive.open(f"{name}.npy") as stream:
            found = _native(np.lib.format.read_array(stream, allow_pickle=False))
            # Only reading on to the end compares the checksum of the entry.
            stream.read()
        return found


def _header(stream: IO[bytes]) -> Header:
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"version {version} of the format")
    shape, _, dtype = read(stream)
    return tuple(int(size) for size in shape), dtype


def _check_header(path: Path, header: Header, n_stored: int) -> None:
    shape, dtype = header
    if dtype.hasobject:
        raise UnsafeInputError(
            f"'{path}' should hold numbers, but holds Python objects, which are not opened; save a numeric array."
        )
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes > n_stored:
        raise MalformedInputError(
            f"'{path}' promises an array of shape {shape} ({n_bytes} bytes), but holds {n_stored} bytes of it; "
            "copy it again."
        )
    check_budget(path, n_bytes)


def _native(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    return array.astype(array.dtype.newbyteorder("="), copy=False)
