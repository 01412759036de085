"""NumPy .npz: a zip archive of .npy files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from deconv_cli.io.codec import Array
from deconv_cli.io.codecs.npy import read_array, read_header
from deconv_cli.io.limits import check_zip
from deconv_cli.io.stored_image import StoredImage
from deconv_cli.io.tensors import IMAGE_NAME, TensorCodec, TensorFile

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
