"""The whole content of a file, whether a computation would take it or not: NaN, several tensors, unnamed axes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deconv_cli.errors import DeconvError, TooLargeError
from deconv_cli.io import records
from deconv_cli.io.codec import Codec, StoredImage, codec_of_content, suffix_note, zeros_of
from deconv_cli.io.files import fingerprint, read_head
from deconv_cli.io.image import choose_member, read_stored
from deconv_cli.io.layout import Array, as_real_array, dtype_name, letters_of_tensor
from deconv_cli.io.region_arrays import RegionSource
from deconv_cli.io.regions import open_regions, read_spread
from deconv_cli.io.tensors import IMAGE_NAME, TensorCodec, TensorFile, open_tensors
from deconv_cli.vocabulary import counted, format_memory, format_size

MAX_WHOLE_BYTES = 256 * 2**20
"""Of the samples of an array that is read as a whole."""

_MAX_TEXT = 200
"""Characters of a free text that are shown."""
_MOST_BYTES_A_SAMPLE = 16
_MAX_LISTED = 4
_MAX_READ = 1000
"""Of the tensors of a file."""
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')
"""Of XML, whose elements are not shown."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One array of a file: its name, empty for the only one, and its samples, converted as `as_real_array` does.

    The letters of its axes are None where they are unknown; `is_kernel` marks an array that looks like taps. Of a
    large array `samples` are pieces of one size, and `whole` is its shape.
    """

    name: str
    samples: Array
    dtype: str
    axes: str | None
    is_kernel: bool
    whole: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored."""
        return tuple(self.samples.shape) if self.whole is None else self.whole


@dataclass(frozen=True, eq=False)
class Inspected:
    """The content of a file."""

    path: Path
    codec: Codec
    sha256: str | None
    """Of all bytes of the file; None where only pieces of it were read."""
    entries: tuple[Entry, ...]
    metadata: dict[str, Any]
    """As JSON."""
    record: dict[str, Any] | None
    """Of the run that wrote the file."""
    notes: tuple[str, ...]


def inspect_file(
    path: Path,
    *,
    tensor: str | None = None,
    series: int | None = None,
    open_file: Callable[[Path, TensorCodec], TensorFile] = open_tensors,
    is_whole: bool = False,
) -> Inspected:
    """Read the whole content of a file: every tensor or only the one named, and of a TIFF file one series.

    An array of more than `MAX_WHOLE_BYTES` is read in pieces, if its format is read by parts. With `is_whole`, as for
    kernels, it is refused.

    Raises:
        UsageError: no such file, tensor or series.
        FileAccessError: the file cannot be read.
        InputRefusedError: damaged, unsafe, too large, or no real numbers.
    """
    path = Path(path)
    codec = codec_of_content(path, read_head(path))
    member = choose_member(path, codec, tensor, series)
    notes = suffix_note(path, codec)
    if isinstance(codec, TensorCodec):
        opened = open_file(path, codec)
        names = list(opened.shapes) if tensor is None else [opened.find(tensor, f"{tensor}.weight")]
        if len(names) > _MAX_READ:
            notes += (f"the first {_MAX_READ} of {len(names)} tensors were read; tensor=NAME chooses another",)
            del names[_MAX_READ:]
        entries = tuple(_entry(opened, name, is_whole=is_whole) for name in names)
        are_whole = all(entry.whole is None for entry in entries)
        return Inspected(path, codec, fingerprint(path) if are_whole else None, entries, {}, opened.record, notes)
    source = _large_source(path, series=series, is_refused=is_whole)
    if source is not None:
        about = StoredImage(zeros_of(source.shape, np.dtype(source.dtype)), source.axes, source.metadata)
        entry = _pieces(source, source.axes)
        return Inspected(path, codec, None, (entry,), _described(about), source.record, (*notes, *source.notes))
    sha256 = fingerprint(path)
    stored = read_stored(path, codec, member)
    entry = Entry("", as_real_array(path, stored.samples), stored.dtype, stored.axes, is_kernel=False)
    record = stored.record if codec.record_inside else records.read_beside(path)
    return Inspected(path, codec, sha256, (entry,), _described(stored), record, (*notes, *stored.notes))


def _large_source(
    path: Path, *, series: int | None = None, tensor: str | None = None, is_refused: bool
) -> RegionSource | None:
    """Open an array that is too large to be read as a whole and can be read by parts, or refuse it."""
    try:
        source = open_regions(path, series=series, tensor=tensor)
    except DeconvError:
        return None  # reading the whole raises it again
    if source.n_bytes <= MAX_WHOLE_BYTES:
        return None
    if is_refused:
        raise TooLargeError(
            f"'{path}' of shape {source.shape} takes {format_memory(source.n_bytes)}, more than the "
            f"{format_memory(MAX_WHOLE_BYTES)} of the largest kernel that deconv inspects; read it as an image."
        )
    return source


def _pieces(source: RegionSource, axes: str | None, name: str = "") -> Entry:
    return Entry(name, read_spread(source), source.dtype, axes, is_kernel=False, whole=source.shape)


def _entry(opened: TensorFile, name: str, *, is_whole: bool) -> Entry:
    """Read a tensor, in pieces if it is large.

    Four axes are taps if the tensor is alone in its file and no result, or the weight of a layer.
    """
    if math.prod(opened.shapes[name]) * _MOST_BYTES_A_SAMPLE > MAX_WHOLE_BYTES:
        source = _large_source(opened.path, tensor=name or None, is_refused=is_whole)
        if source is not None:
            return _pieces(source, letters_of_tensor(len(source.shape)), name)
    stored = opened.read(name)
    n_axes, is_only = len(stored.shape), len(opened.shapes) == 1
    is_weight = name.rpartition(".")[2] == "weight"
    is_result = records.matching_record(opened.record, tuple(stored.shape)) is not None
    is_kernel = n_axes == 4 and (is_weight or (is_only and name != IMAGE_NAME and not is_result))
    # Among several tensors, two axes are rather a matrix than an image; one axis is never an image.
    axes = None if is_kernel or n_axes == 1 or (n_axes == 2 and not is_only) else letters_of_tensor(n_axes)
    samples = np.empty(tuple(stored.shape)) if 0 in stored.shape else as_real_array(opened.path, stored)
    return Entry(name, samples, dtype_name(stored), axes, is_kernel)


_PIECE = 2**20
"""Samples that are converted to double precision at a time."""


def measure_samples(samples: Array) -> dict[str, Any]:
    """Count samples of any shape and measure the finite ones, as JSON; a mean beyond float64 is `None`."""
    finite, n_nan, n_infinite = samples.reshape(-1), 0, 0
    if finite.size and not np.isfinite([finite.min(), finite.max()]).all():
        n_nan, n_infinite = int(np.isnan(finite).sum()), int(np.isinf(finite).sum())
        finite = finite[np.isfinite(finite)]
    found: dict[str, Any] = {"samples": samples.size, "nan": n_nan, "infinite": n_infinite}
    if not finite.size:
        return found | dict.fromkeys(("minimum", "maximum", "mean", "standard_deviation"))
    low, high = float(finite.min()), float(finite.max())
    unit = 2.0 ** (math.frexp(max(-low, high))[1] - 1)  # squares of larger and of tiny samples leave float64

    def total(center: float, power: int) -> float:
        pieces = (finite[start : start + _PIECE] for start in range(0, finite.size, _PIECE))
        return sum(float(((piece.astype(np.float64) / unit - center) ** power).sum()) for piece in pieces)

    mean = total(0.0, 1) / finite.size
    spread = math.sqrt(total(mean, 2) / finite.size)
    described = {"minimum": low, "maximum": high, "mean": unit * mean, "standard_deviation": unit * spread}
    return found | {name: value if math.isfinite(value) else None for name, value in described.items()}


def _described(stored: StoredImage) -> dict[str, Any]:
    """Write the metadata of a picture as JSON; blocks of bytes only by their size."""
    metadata, density = stored.metadata, stored.metadata.density
    described: dict[str, Any] = {
        "orientation": None if stored.orientation == 1 else stored.orientation,
        "flavor": metadata.flavor,
        "resolution": density and {"x": float(density.x), "y": float(density.y), "pixels_per": density.unit or None},
        "plane_distance": density and density.plane_distance and float(density.plane_distance),
        "icc_profile_bytes": metadata.icc_profile and len(metadata.icc_profile),
        "exif_bytes": metadata.exif and len(metadata.exif),
        "channel_names": list(metadata.channel_names),
        "other": {k: _short(v) for k, v in (*metadata.native.items(), *metadata.native_of_channels.items())},
        "never_carried": list(metadata.unsupported),
    }
    return {name: value for name, value in described.items() if value}


def _short(value: Any) -> Any:  # noqa: ANN401
    """Keep finite numbers, and shorten everything else to a text."""
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return value
    if isinstance(value, bytes):
        return counted(len(value), "byte")
    if isinstance(value, np.ndarray):
        return f"{format_size(value.shape)} {value.dtype}"
    if isinstance(value, str) and "\n" in value:
        value = [" ".join(line.split()) for line in value.strip().splitlines()]
    if isinstance(value, list | tuple) and value and not all(isinstance(member, int | float) for member in value):
        shown = [str(_short(member)) for member in value[:_MAX_LISTED]]
        more = f" and {len(value) - len(shown)} more" if len(value) > len(shown) else ""
        return ", ".join(shown)[:_MAX_TEXT] + more
    if isinstance(value, str) and value.startswith("<"):
        return ", ".join(f"{name} {text}" for name, text in _ATTRIBUTE.findall(value))[:_MAX_TEXT]
    return str(value)[:_MAX_TEXT]
