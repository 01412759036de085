"""What a file holds, without refusing what no computation would take: NaN, several tensors, axes without a name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from deconv_cli.errors import UsageError
from deconv_cli.io.contents import Contents, Metadata
from deconv_cli.io.formats import FileFormat, format_of_content, suffix_note
from deconv_cli.io.image import read_contents
from deconv_cli.io.layout import TENSOR_AXES
from deconv_cli.io.samples import as_real_tensor, dtype_name
from deconv_cli.io.sources import open_source
from deconv_cli.io.tensors import IMAGE_NAME, TensorFile, list_tensors, open_tensors

MAX_TEXT = 200
"""Characters of a free text that are told."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One array of a file."""

    name: str
    """Empty for the only one, without a name."""
    samples: torch.Tensor
    """As stored, but int32 and int64 for uint16 and uint32, and uint8 for bool."""
    dtype: str
    axes: str | None
    """The letters of its axes; None where nothing says what they are."""
    is_kernel: bool
    """It looks like the taps of a convolution."""


@dataclass(frozen=True, eq=False)
class Inspected:
    """A file as found."""

    path: Path
    format: FileFormat
    sha256: str
    entries: tuple[Entry, ...]
    metadata: dict[str, Any]
    """What it tells besides its samples, as JSON has it."""
    record: dict[str, Any] | None
    """What an earlier run wrote into it or beside it."""
    notes: tuple[str, ...]


def inspect_file(path: Path, *, tensor: str | None = None, series: int | None = None) -> Inspected:
    """Read all that a file holds.

    Args:
        path: the file; its format is told from its content.
        tensor: name of a single tensor, or of a layer, where a file holds several; else all of them are read.
        series: number of the TIFF series, where a file holds several.

    Raises:
        UsageError: no such file, tensor or series.
        FileAccessError: the file cannot be read.
        InputRefusedError: damaged, unsafe, too large, or no real numbers.
    """
    path = Path(path)
    head, sha256 = open_source(path)
    file_format = format_of_content(path, head)
    if tensor is not None and file_format.is_picture:
        raise UsageError(f"--tensor chooses among named tensors, but '{path}' is a {file_format} file.")
    if series is not None and file_format is not FileFormat.TIFF:
        raise UsageError(f"--series chooses among the series of a TIFF file, but '{path}' is a {file_format} file.")
    notes = suffix_note(path, file_format)
    if file_format.is_picture:
        contents = read_contents(path, file_format, series=series)
        entry = Entry("", as_real_tensor(path, contents.samples), contents.dtype, contents.axes, is_kernel=False)
        told = _told(contents)
        return Inspected(path, file_format, sha256, (entry,), told, contents.record, (*notes, *contents.notes))
    opened = open_tensors(path, file_format)
    names = list(opened.shapes) if tensor is None else [_named(opened, tensor)]
    entries = tuple(_entry(opened, name, is_only=len(opened.shapes) == 1) for name in names)
    return Inspected(path, file_format, sha256, entries, {}, opened.record, notes)


def _named(opened: TensorFile, name: str) -> str:
    for candidate in (name, f"{name}.weight"):
        if candidate in opened.shapes and candidate:
            return candidate
    raise UsageError(f"'{opened.path}' holds no tensor named '{name}', only {list_tensors(opened.shapes)}.")


def _entry(opened: TensorFile, name: str, *, is_only: bool) -> Entry:
    """Read a tensor; four axes are taps if they are all that is there, or the weight of a layer."""
    stored = opened.read(name)
    n_axes = len(stored.shape)
    is_weight = name.rpartition(".")[2] == "weight"
    is_kernel = n_axes == 4 and (is_weight or (is_only and name != IMAGE_NAME))
    # Two axes among several tensors are rather a matrix than an image.
    axes = None if is_kernel or (n_axes == 2 and not is_only) else TENSOR_AXES.get(n_axes)
    samples = torch.empty(tuple(stored.shape)) if 0 in stored.shape else as_real_tensor(opened.path, stored)
    return Entry(name, samples, dtype_name(stored), axes, is_kernel)


def as_kernel(entry: Entry) -> Entry:
    """Take an array for a kernel, whatever it looks like."""
    return replace(entry, is_kernel=True, axes=None)


def as_image(entry: Entry) -> Entry:
    """Take an array for an image, whatever it looks like."""
    return replace(entry, is_kernel=False, axes=entry.axes or TENSOR_AXES.get(entry.samples.ndim))


def _told(contents: Contents) -> dict[str, Any]:
    """List what a picture tells of itself; contents of blocks only by their size."""
    metadata: Metadata = contents.metadata
    resolution = metadata.resolution
    told: dict[str, Any] = {
        "orientation": None if contents.orientation == 1 else contents.orientation,
        "alpha": contents.alpha,
        "flavor": None if contents.flavor == "plain" else contents.flavor,
        "resolution": resolution
        and {"x": float(resolution.x), "y": float(resolution.y), "pixels_per": resolution.unit},
        "icc_profile_bytes": metadata.icc_profile and len(metadata.icc_profile),
        "exif_bytes": metadata.exif and len(metadata.exif),
        "texts": {name: text[:MAX_TEXT] for name, text in metadata.texts.items()},
        "imagej": {name: _short(value) for name, value in metadata.imagej.items()},
        "ome": {name: _short(value) for name, value in metadata.ome.items()},
        "png_chunks": [name.decode("ascii", "replace") for name, _ in metadata.png_chunks],
        "white_is_zero": metadata.white_is_zero,
        "comment": metadata.comment and metadata.comment.decode("utf-8", "replace")[:MAX_TEXT],
        "never_carried": list(metadata.unsupported),
    }
    return {name: value for name, value in told.items() if value}


def _short(value: Any) -> Any:  # noqa: ANN401
    """Keep numbers, and cut everything else down to a text."""
    if isinstance(value, bool | int) or (isinstance(value, float) and value == value and abs(value) != float("inf")):
        return value
    return str(value)[:MAX_TEXT]
