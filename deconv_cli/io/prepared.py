"""A result that is ready to be written: written, checked, and put in place together with its record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from deconv_cli.io import records
from deconv_cli.io.atomic import write_atomically, write_line_beside
from deconv_cli.io.codec import Codec
from deconv_cli.io.image import read_stored
from deconv_cli.io.limits import allowing, memory_budget
from deconv_cli.io.output_path import make_parents
from deconv_cli.io.stored_image import StoredImage


def write_with_record(
    path: Path, codec: Codec, image: StoredImage, record: dict[str, Any], check: Callable[[Path], None]
) -> None:
    """Write a file that holds its record, or has it beside itself where the format takes none.

    Args:
        path: of the file.
        codec: of its format.
        image: what is stored, with the record that it holds.
        record: what is written beside it, complete.
        check: raises if the file that it is given is not what was meant.

    Raises:
        FileAccessError: disk full, no permission, or the file does not read back.
    """
    encoded = records.seal_record(records.finite(record))

    def write_samples() -> None:
        write_atomically(path, lambda temporary: codec.write(temporary, image), check)

    if codec.record_inside:
        write_samples()
    else:
        write_line_beside(records.beside(path), encoded, write_samples)


@dataclass(frozen=True, eq=False)
class PreparedOutput:
    """A result converted to the samples of its file, about to be written."""

    path: Path
    notes: tuple[str, ...]
    """What was done to the samples, and what could not be carried over from the source."""
    _codec: Codec
    _image: StoredImage
    _make_folder: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """As it will be stored."""
        return self._image.shape

    @property
    def axes(self) -> str:
        """The letters of the stored axes."""
        return self._image.axes

    @property
    def dtype(self) -> str:
        """NumPy name of the sample type."""
        return self._image.dtype

    @cached_property
    def samples_sha256(self) -> str:
        """Hash of the samples, by which the record beside a file is known to be that file's own."""
        return records.samples_digest(np.asarray(self._image.samples))

    def write(self, record: dict[str, Any]) -> None:
        """Write the file with the record of the run, completely or not at all.

        Where a format takes no record, as `.pt` and `.npy`, it goes beside the file, into `NAME.npy.json`, as it is.
        A file that holds it has no absolute paths, and a picture other than TIFF only what was done, in short.

        Args:
            record: a JSON object without NaN or Inf; `output.shape` and `output.dtype` are added if it lacks them.

        Raises:
            FileAccessError: disk full, no permission, or the file does not read back.
        """
        if self._make_folder:
            make_parents(self.path)
        complete = records.complete_record(record, self.shape, self.dtype, self.samples_sha256)
        image = replace(self._image, record=self._codec.record_to_keep(complete))
        write_with_record(self.path, self._codec, image, complete, self._check)

    def _check(self, temporary: Path) -> None:
        with allowing(memory_budget()):
            found = read_stored(temporary, self._codec)
        if found.shape != self.shape or found.dtype != self.dtype:
            raise ValueError(f"{found.dtype} {found.shape} instead of {self.dtype} {self.shape}")
        if self._codec.is_lossless and not np.array_equal(np.asarray(found.samples), np.asarray(self._image.samples)):
            raise ValueError("some samples differ")
