"""A result on its last steps: written, checked, and put in place together with its record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from deconv_cli.errors import FileAccessError
from deconv_cli.io import records
from deconv_cli.io.atomic import write_atomically
from deconv_cli.io.drafts import Draft
from deconv_cli.io.formats import SIDECAR_FORMATS, FileFormat
from deconv_cli.io.image import read_contents
from deconv_cli.io.sources import reason_of


@dataclass(frozen=True, eq=False)
class PreparedOutput:
    """A result converted to the samples of its file, about to be written."""

    path: Path
    shape: tuple[int, ...]
    """As it will be stored."""
    dtype: str
    notes: tuple[str, ...]
    """What was done to the samples, and what could not be carried over from the source."""
    _format: FileFormat
    _draft: Draft
    _encode: Callable[[Path, str], None]
    _make_folder: bool

    @cached_property
    def samples_sha256(self) -> str:
        """Hash of the samples, by which the record beside a bare file is known to be that file's own."""
        return records.samples_digest(self._draft.array)

    def write(self, record: dict[str, Any]) -> None:
        """Write the file with the record of the run, completely or not at all.

        `.pt`, `.npy` and `.npz` hold the bare tensor; the record goes beside them, into NAME.json.

        Args:
            record: a JSON object without NaN or Inf; `output.shape` and `output.dtype` are added if it lacks them.

        Raises:
            FileAccessError: disk full, no permission, or the file does not read back.
        """
        if self._make_folder:
            self._make_parents()
        encoded = records.encode_record(records.complete_record(record, self.shape, self.dtype, self.samples_sha256))

        def write_samples() -> None:
            write_atomically(self.path, lambda temporary: self._encode(temporary, encoded), self._check)

        if self._format not in SIDECAR_FORMATS:
            write_samples()
            return
        # The record waits, written, until the samples are in place, so that neither is there for long alone.
        write_atomically(
            records.beside(self.path),
            lambda temporary: _write_line(temporary, encoded),
            lambda _: write_samples(),
        )

    def _make_parents(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileAccessError(f"the folder of '{self.path}' cannot be made: {reason_of(error)}.") from error

    def _check(self, temporary: Path) -> None:
        found = read_contents(temporary, self._format, axes=self._draft.axes)
        if found.shape != self.shape or found.dtype != self.dtype:
            raise ValueError(f"{found.dtype} {found.shape} instead of {self.dtype} {self.shape}")
        is_exact = self._format is not FileFormat.JPEG
        if is_exact and not np.array_equal(np.asarray(found.samples), self._draft.array):
            raise ValueError("some samples differ")


def _write_line(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="ascii")
