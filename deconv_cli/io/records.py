"""Writing and reading the record of a run, inside the file that the run wrote or in a file of its own.

A record is a JSON object. Its `output` member holds at least the `shape` and `dtype` of the file, so that a cropped or
converted copy does not pass for the file. Files are passed on, so a record inside of one has no absolute paths, and the
record of a picture is short.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from deconv_cli.errors import MalformedInputError
from deconv_cli.io.layout import Samples, dtype_name

KEYWORD = "deconv"
"""The name of a record in every format."""

_LINE_START = f"{KEYWORD}: "
_SHORT = (
    *("schema", "command", "padding", "boundary", "light", "tone_curve", "noise", "seed"),
    "layer_options",
    *("method", "lambda", "penalty", "objective", "weight"),
)
"""Members of a record that describe the computation."""
_DIGEST = "digest"
_MAX_CHARACTERS = 16 * 2**20


def complete_record(
    record: dict[str, Any], shape: tuple[int, ...], dtype: str, samples_sha256: str | None
) -> dict[str, Any]:
    """Add shape, sample type and hash of the samples of the written file to a record, where it lacks them.

    The record inside of a large file has no hash, since hashing would read all samples again.
    """
    described = {"shape": list(shape), "dtype": dtype}
    described |= {"samples_sha256": samples_sha256} if samples_sha256 else {}
    return {**record, "output": {**described, **record.get("output", {})}}


def short_record(record: dict[str, Any]) -> dict[str, Any]:
    """Keep the settings, the kernel and the shape of a record: nothing about the computer of the run."""
    kept = {name: record[name] for name in _SHORT if record.get(name) is not None}
    kernel, output = record.get("kernel"), record["output"]
    if isinstance(kernel, dict):
        # A kernel without a file is a formula.
        named = "path" if kernel.get("sha256") is None else "sha256"
        kept["kernel"] = {named: kernel.get(named)}
    return kept | {"output": {name: output[name] for name in ("shape", "dtype")}}


def without_folders(record: dict[str, Any]) -> dict[str, Any]:
    """Shorten absolute paths to file names, in notes and in the command that repeats the run, too."""
    words = shlex.split(str(record.get("rerun") or ""))
    files = [member for member in (*record.get("inputs", ()), *record.values()) if isinstance(member, dict)]
    paths = [PurePath(str(file.get("path"))) for file in files]
    paths += [PurePath(word.partition("=")[2] or word) for word in words]
    whole = [path for path in paths if path.is_absolute() and path.name]
    names = {json.dumps(str(path))[1:-1]: json.dumps(path.name)[1:-1] for path in whole}
    if not names:
        return record
    # Without folders input and output may be the same file, so nothing may be replaced.
    text = json.dumps({**record, "rerun": [word for word in words if word != "--force"]})
    # A path inside of a longer one or of an address is another.
    longest_first = "|".join(re.escape(path) for path in sorted(names, key=len, reverse=True))
    text = re.sub(rf"(?<![\w.:/~-])(?:{longest_first})(?![\w/-]|\\\\)", lambda found: names[found[0]], text)
    kept: dict[str, Any] = json.loads(text)
    again = kept.pop("rerun")
    return kept | ({"rerun": shlex.join(again)} if again else {})


def encode_record(record: dict[str, Any]) -> str:
    """Write a record as one line of ASCII JSON; NaN, which would be a mistake, is a `ValueError`."""
    return json.dumps(finite(record))


def finite(value: Any) -> Any:  # noqa: ANN401 (as JSON has it)
    """Replace Inf by `None`: squares of samples may leave the range of numbers. NaN is a `ValueError`."""
    if isinstance(value, dict):
        return {name: finite(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [finite(member) for member in value]
    if isinstance(value, float) and math.isnan(value):
        raise ValueError("a record holds NaN")
    return None if isinstance(value, float) and math.isinf(value) else value


def seal_record(record: dict[str, Any]) -> str:
    """Write a record for a file of its own: one line of ASCII JSON whose last member is the digest of the others."""
    return json.dumps({**record, _DIGEST: _digest(record)})


def open_sealed(text: str, *, needs_digest: bool = True) -> dict[str, Any]:
    """Read a text of `seal_record`; raises `ValueError` if it was changed, or is no JSON object."""
    record = decode_record(text)
    digest = None if record is None else record.pop(_DIGEST, None)
    if record is None or ((needs_digest or digest is not None) and digest != _digest(record)):
        raise ValueError("the digest is missing or does not match")
    return record


def _digest(record: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(record).encode(), digest_size=16).hexdigest()


def decode_record(text: object) -> dict[str, Any] | None:
    """Read a record; `None` for any other text."""
    if not isinstance(text, str) or len(text) > _MAX_CHARACTERS:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def put_line(text: str, encoded: str) -> str:
    """Add a record to a text of several lines; it replaces an older record."""
    return "\n".join([*drop_line(text).splitlines(), _LINE_START + encoded])


def take_line(text: object) -> dict[str, Any] | None:
    """Find a record in a text of several lines."""
    lines = text.splitlines() if isinstance(text, str) else []
    found = [line.removeprefix(_LINE_START) for line in lines if line.startswith(_LINE_START)]
    return decode_record(found[-1]) if found else None


def drop_line(text: str) -> str:
    """Remove the records from a text of several lines."""
    return "\n".join(line for line in text.splitlines() if not line.startswith(_LINE_START))


def beside(path: Path) -> Path:
    """Name the file that holds the record of a file whose format takes none: `estimate.npy.json`."""
    return path.with_name(f"{path.name}.json")


def read_beside(path: Path) -> dict[str, Any] | None:
    """Read the record beside a file, not other JSON; raises `MalformedInputError` if it was changed."""
    sidecar, text = beside(path), ""
    try:
        if not sidecar.is_file() or sidecar.stat().st_size > _MAX_CHARACTERS:
            return None
        text = sidecar.read_text(encoding="utf-8", errors="replace")
        return open_sealed(text, needs_digest=False)
    except OSError:
        return None
    except ValueError as error:
        if not any(word in text for word in (_DIGEST, "schema", "command")):
            return None
        raise MalformedInputError(
            f"the record '{sidecar}' says how '{path.name}' was made, but is damaged; restore it, or move it away."
        ) from error


def matching_record(record: dict[str, Any] | None, shape: tuple[int, ...]) -> dict[str, Any] | None:
    """Keep a record only if it describes a file of this shape."""
    output = record.get("output") if record else None
    recorded = output.get("shape") if isinstance(output, dict) else None
    return record if recorded == list(shape) else None


def recorded_axes(record: dict[str, Any] | None) -> str:
    """Read the letters of the axes in a matching record; empty where it has none."""
    axes = record["output"].get("axes") if record else ""
    return axes if isinstance(axes, str) else ""


def matching_record_beside(record: dict[str, Any] | None, samples: Samples) -> dict[str, Any] | None:
    """Keep a record from beside a file only if it describes these samples: the file may have been replaced."""
    kept = matching_record(record, tuple(int(size) for size in samples.shape))
    if kept is None or kept["output"].get("dtype") != dtype_name(samples):
        return None
    return kept if kept["output"].get("samples_sha256") == samples_digest(np.asarray(samples)) else None


def samples_digest(array: npt.NDArray[Any]) -> str:
    """Hash samples, row by row, in little-endian order: the same for the same samples in any file format."""
    ordered = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(ordered.tobytes()).hexdigest()
