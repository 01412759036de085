"""Large arrays in NumPy .npy files: a part is read, or written, through a map of the file into memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deconv_cli.errors import DeconvError, FileAccessError
from deconv_cli.io import records
from deconv_cli.io.atomic import write_line_beside
from deconv_cli.io.codec import Array
from deconv_cli.io.codecs.npy import read_layout
from deconv_cli.io.regions.region_source import Region, RegionSource
from deconv_cli.io.regions.region_target import RegionTarget
from deconv_cli.io.sources import reason_of, refusing_damage

NAME = "NumPy .npy"
_PIECE = 2**24
"""Bytes that are hashed at a time."""


@dataclass(frozen=True, eq=False)
class NpySource(RegionSource):
    """An array of a `.npy` file; the map is closed after each part, so that it counts as memory no longer."""

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
        # What lies together in the file is read together: rows, or columns.
        chunk = tuple(n if i == (0 if layout.is_fortran else len(shape) - 1) else 1 for i, n in enumerate(shape))
        return NpySource(
            path=path,
            format_name=NAME,
            shape=shape,
            dtype=layout.dtype.newbyteorder("=").name,
            axes=axes,
            chunk=chunk,
            is_picture=False,
            record=records.matching_record(records.read_beside(path), shape),
            start=layout.start,
            stored_type=layout.dtype.str,
            order="F" if layout.is_fortran else "C",
        )

    def read(self, region: Region) -> Array:
        """Read a part."""
        with refusing_damage(self.path, f"a {NAME} file"):
            mapped = np.memmap(self.path, self.stored_type, "r", self.start, self.shape, self.order)
            found: Array = np.array(mapped[region], dtype=np.dtype(self.dtype), order="C")
            return found

    def fingerprint(self) -> str:
        """Hash what the header says, with size and time of the file."""
        try:
            found = self.path.stat()
        except OSError as error:
            raise FileAccessError(f"'{self.path}' cannot be read: {reason_of(error)}.") from error
        told = (self.shape, self.stored_type, self.order, self.start, found.st_size, found.st_mtime_ns)
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class NpyTarget(RegionTarget):
    """A `.npy` file in the making: one of its final size and a hidden name, which every writer maps into memory."""

    @property
    def partial(self) -> Path:
        """The file that is written before all is there."""
        return self.path.with_name(f".{self.path.name}.partial")

    def create(self) -> None:
        """Make the file, with all the room it will need."""
        n_bytes = math.prod(self.shape) * np.dtype(self.dtype).itemsize
        with _refusing_to_write(self.path):
            if self._is_there():
                return
            room = shutil.disk_usage(self.path.parent).free
            if room < n_bytes:
                raise FileAccessError(
                    f"'{self.path}' takes {n_bytes} bytes, but its disk has room for {room}; free some, or choose "
                    "another disk."
                )
            with self.partial.open("wb") as stream:
                header = {"descr": np.dtype(self.dtype).newbyteorder("<").str, "fortran_order": False}
                np.lib.format.write_array_header_1_0(stream, header | {"shape": self.shape})
                stream.flush()
                _allocate(stream.fileno(), stream.tell() + n_bytes)

    def _is_there(self) -> bool:
        """Tell whether an earlier run made the whole file; one that ended while it did left a shorter one."""
        with contextlib.suppress(OSError, ValueError):
            found = self._open("r")
            return found.shape == self.shape and found.dtype == np.dtype(self.dtype)
        return False

    def _open(self, mode: Literal["r", "r+"]) -> np.memmap[Any, Any]:
        mapped: np.memmap[Any, Any] = np.lib.format.open_memmap(self.partial, mode)
        return mapped

    def write(self, region: Region, samples: Array) -> None:
        """Write a part."""
        with _refusing_to_write(self.path):
            mapped = self._open("r+")
            mapped[region] = samples
            mapped.flush()

    def finish(self, record: dict[str, Any]) -> None:
        """Hash the samples, write the record beside, and give the file its name."""
        with _refusing_to_write(self.path):
            digest = self._digest()
        complete = records.complete_record(record, self.shape, self.dtype, digest)
        write_line_beside(records.beside(self.path), records.encode_record(complete), self._put_in_place)

    def _put_in_place(self) -> None:
        with _refusing_to_write(self.path):
            with self.partial.open("rb+") as stream:
                os.fsync(stream.fileno())
            self.partial.replace(self.path)

    def _digest(self) -> str:
        """Hash all samples, a piece at a time; the same as `records.samples_digest` of the whole."""
        found = hashlib.sha256()
        with self.partial.open("rb") as stream:
            np.lib.format.read_magic(stream)
            np.lib.format.read_array_header_1_0(stream)
            while piece := stream.read(_PIECE):
                found.update(piece)
        return found.hexdigest()

    def discard(self) -> None:
        """Remove the hidden file."""
        with _refusing_to_write(self.path):
            self.partial.unlink(missing_ok=True)


def _allocate(descriptor: int, n_bytes: int) -> None:
    """Give a file its final size, reserved on the disk where the system can: a map of a full disk ends a process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, n_bytes)
    else:
        os.ftruncate(descriptor, n_bytes)


@contextmanager
def _refusing_to_write(path: Path) -> Iterator[None]:
    try:
        yield
    except DeconvError:
        raise
    except (OSError, ValueError) as error:
        raise FileAccessError(f"'{path}' cannot be written: {reason_of(error)}.") from error
