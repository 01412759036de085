"""The record of a run, inside the file that the run wrote or beside it: how it is written, and read again.

A record is a JSON object. Its `output` member carries at least the `shape` and `dtype` of the file, so that a
record which came along into a cropped or converted copy is not taken for the record of that copy.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deconv_cli.io.stored_image import StoredImage

KEYWORD = "deconv"
"""The name that a record goes by in every format."""

_LINE_START = f"{KEYWORD}: "
_MAX_CHARACTERS = 16 * 2**20


def complete_record(record: dict[str, Any], shape: tuple[int, ...], dtype: str, samples_sha256: str) -> dict[str, Any]:
    """Add shape, sample type and hash of the samples of the written file to a record, where it lacks them."""
    described = {"shape": list(shape), "dtype": dtype, "samples_sha256": samples_sha256}
    return {**record, "output": {**described, **record.get("output", {})}}


def encode_record(record: dict[str, Any]) -> str:
    """Write a record as one line of ASCII JSON; NaN and Inf, which JSON does not know, are a `ValueError`."""
    return json.dumps(record, allow_nan=False, ensure_ascii=True)


def decode_record(text: object) -> dict[str, Any] | None:
    """Read a record, or None if this is none."""
    if not isinstance(text, str) or len(text) > _MAX_CHARACTERS:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def put_line(text: str, encoded: str) -> str:
    """Add a record to a text of several lines, in the place of an older record."""
    kept = [line for line in text.splitlines() if not line.startswith(_LINE_START)]
    return "\n".join([*kept, _LINE_START + encoded])


def take_line(text: object) -> dict[str, Any] | None:
    """Find a record in a text of several lines."""
    lines = text.splitlines() if isinstance(text, str) else []
    found = [line.removeprefix(_LINE_START) for line in lines if line.startswith(_LINE_START)]
    return decode_record(found[-1]) if found else None


def beside(path: Path) -> Path:
    """Name the file that holds the record of a file whose format takes none."""
    return path.with_suffix(".json")


def read_beside(path: Path) -> dict[str, Any] | None:
    """Read the record beside a file, or None without one."""
    sidecar = beside(path)
    try:
        if not sidecar.is_file() or sidecar.stat().st_size > _MAX_CHARACTERS:
            return None
        return decode_record(sidecar.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def matching_record(record: dict[str, Any] | None, shape: tuple[int, ...]) -> dict[str, Any] | None:
    """Keep a record only if it describes a file of this shape."""
    output = record.get("output") if record else None
    recorded = output.get("shape") if isinstance(output, dict) else None
    return record if recorded == list(shape) else None


def matching_record_beside(record: dict[str, Any] | None, image: StoredImage) -> dict[str, Any] | None:
    """Keep a record from beside a file only if it describes these very samples: the file may be another by now."""
    kept = matching_record(record, image.shape)
    if kept is None or kept["output"].get("dtype") != image.dtype:
        return None
    return kept if kept["output"].get("samples_sha256") == samples_digest(np.asarray(image.samples)) else None


def samples_digest(array: npt.NDArray[Any]) -> str:
    """Hash samples, row by row, in little-endian order: the same for the same samples in any file format."""
    ordered = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(ordered.tobytes()).hexdigest()
