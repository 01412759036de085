"""Large arrays in files that are read and written a part at a time, by one process or by several."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from deconv_cli.errors import FileAccessError, MalformedInputError, UsageError
from deconv_cli.io.codec import Array, Codec, WriteRequest, all_codecs, codec_of_content, codec_of_suffix
from deconv_cli.io.files import read_head, reason_of, spelled
from deconv_cli.io.image import ImageFile, choose_member
from deconv_cli.io.layout import Layout, dimensions_of, tensor_axes
from deconv_cli.io.metadata import Metadata
from deconv_cli.io.output import check_levels, check_output_files, choose_dtype
from deconv_cli.io.samples import UNDERSTOOD, as_real_tensor
from deconv_cli.parts import CODECS, REGION_FORMATS
from deconv_cli.vocabulary import OutputDType

Region: TypeAlias = tuple[slice, ...]
"""One slice for each stored axis, with plain start and stop inside of the array, and no step."""


class _Array(ABC):
    """The common part of arrays that are read and of arrays that are written."""

    path: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def n_bytes(self) -> int:
        """Bytes of all samples, in memory."""
        return math.prod(self.shape) * (2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize)

    @property
    def spelled_path(self) -> str:
        """The path as it was typed: an address with both of its slashes."""
        return spelled(self.path)


@dataclass(frozen=True, eq=False)
class RegionSource(_Array):
    """An array of a file that is read a part at a time; each process that it is sent to opens the file itself.

    Attributes:
        path: the file or folder, or the address of one.
        format_name: as messages call the format.
        shape: as stored.
        dtype: NumPy name of the stored sample type.
        axes: a letter for each axis; empty where the file names none.
        chunk: samples that are stored together, along each axis; whole chunks are read fastest.
        is_picture: whether a viewer shows such files.
        metadata: of the file.
        record: of the run that wrote the file.
        notes: on how the file is read, a sentence each.
    """

    path: Path
    format_name: str
    shape: tuple[int, ...]
    dtype: str
    axes: str
    chunk: tuple[int, ...]
    is_picture: bool
    metadata: Metadata = field(default_factory=Metadata)
    record: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @abstractmethod
    def read(self, region: Region) -> Array:
        """Read a part, as stored, of the region's shape, in native byte order.

        Raises:
            MalformedInputError: the file is damaged there.
            FileAccessError: it cannot be read.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Compute a SHA-256 that changes when the file does, from its header, its size and its times.

        Hashing all samples of a file of terabytes would cost more than the work.
        """


def fingerprint_of_file(path: Path, *described: object) -> str:
    """Hash the description of a file, with its size and its time."""
    try:
        found = path.stat()
    except OSError as error:
        raise FileAccessError(f"'{path}' cannot be read: {reason_of(error)}.") from error
    return hashlib.sha256(repr((*described, found.st_size, found.st_mtime_ns)).encode()).hexdigest()


def shape_of(region: Region) -> tuple[int, ...]:
    """Compute the shape of a region."""
    return tuple(part.stop - part.start for part in region)


def overlap(first: Region, second: Region) -> tuple[Region, Region]:
    """Intersect two regions; return the intersection as a region of the first, and as one of the second."""
    shared = [(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(first, second, strict=True)]
    relative = [
        tuple(slice(a - part.start, b - part.start) for (a, b), part in zip(shared, region, strict=True))
        for region in (first, second)
    ]
    return relative[0], relative[1]


@dataclass(frozen=True, eq=False)
class RegionTarget(_Array):
    """An array whose parts are written in any order, each once or again, and which can be read when all is there.

    Until `finish` nothing at `path` can be read as a whole result. This record can be sent to other processes. Two
    writers never share a unit, as long as each writes whole units.

    Attributes:
        path: of the result.
        shape: of the whole, in the order of `axes`.
        dtype: NumPy name of the sample type.
        axes: a letter for each axis.
        unit: samples along each axis that are written together, or not at all: the chunk or shard of the format.
        notes: on metadata that could not be carried over from the source, and on axes that were renamed.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: str
    axes: str
    unit: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @abstractmethod
    def create(self) -> bool:
        """Allocate the result beside `path`, unless it is allocated already; return whether it was.

        An allocation that differs in more than its samples is replaced.

        Raises:
            FileAccessError: no permission, or the disk has too little room.
        """

    @abstractmethod
    def is_begun(self) -> bool:
        """Check whether the result is allocated, and not finished yet."""

    @abstractmethod
    def write(self, region: Region, samples: Array) -> None:
        """Write a part that covers whole units, or ends with the array, once or again. Raises `FileAccessError`."""

    @abstractmethod
    def read(self, region: Region) -> Array:
        """Read a part of the unfinished or finished result; raises `DeconvError` if it is damaged."""

    def check_units(self, region: Region) -> None:
        """Raise `ValueError` for parts of units: two writers of one unit would overwrite each other's samples."""
        axes = zip(region, self.unit, self.shape, strict=True)
        if any(part.start % unit or (part.stop % unit and part.stop != size) for part, unit, size in axes):
            raise ValueError(f"parts of '{self.path}' cover whole units of {self.unit}, but {region} does not")

    @abstractmethod
    def finish(self, record: dict[str, Any]) -> None:
        """Put the whole result at `path`, with the record of the run; all parts are there. Raises `FileAccessError`."""

    @abstractmethod
    def discard(self) -> None:
        """Remove the allocation, if there is one."""


class RegionFormat(ABC):
    """The half of a codec for arrays that are never in memory as a whole; registered under the name of its codec."""

    @abstractmethod
    def open(self, path: Path, member: str | int | None) -> RegionSource:
        """Open a file, or the array called `member` of it.

        Raises:
            UsageError: no such array.
            InputRefusedError: damaged, unsafe, or stored in a way that is not read by parts.
        """

    @property
    def is_read_only(self) -> bool:
        """True where files are read by parts and never written so."""
        return type(self).plan is RegionFormat.plan

    def plan(self, request: WriteRequest, layout: Layout, source: RegionSource) -> RegionTarget:
        """Decide how a result is stored; nothing is written yet.

        Args:
            request: for the result.
            layout: axes and sizes of the result, in the order of its source.
            source: the array that the result is computed from, whose metadata it keeps.
        """
        raise NotImplementedError


def open_regions(
    path: Path, *, axes: str | None = None, series: int | None = None, tensor: str | None = None
) -> RegionSource:
    """Open an array that is read a part at a time.

    Args:
        path: the file; its format is recognized by its content.
        axes: letters of the stored axes, in place of those in the file.
        series: number of the TIFF series, where a file holds several.
        tensor: name of the tensor, where a file holds several.

    Raises:
        UsageError: no such file, series or tensor, axes that do not fit, or a format that is only read as a whole.
        FileAccessError: the file cannot be read.
        InputRefusedError: damaged, unsafe, or no real numbers.
    """
    codec = codec_of_content(path, read_head(path))
    found = _format_of(codec)
    if found is None:
        raise UsageError(
            f"'{path}' is a {codec.name} file, which is read as a whole; to work on it by parts convert it to "
            f"{_listed(codec for codec, _ in _formats())}."
        )
    source = found.open(path, choose_member(path, codec, tensor, series))
    if source.dtype not in UNDERSTOOD:
        raise MalformedInputError(f"'{path}' should hold real numbers, but its samples are {source.dtype}.")
    if 0 in source.shape:
        raise MalformedInputError(f"'{path}' holds no samples: its shape is {source.shape}.")
    if axes and len(axes) != len(source.shape):
        raise UsageError(f"axes '{axes}' name {len(axes)} axes, but the shape {source.shape} has {len(source.shape)}.")
    return replace(source, axes=axes.upper()) if axes else source


def is_read_by_parts(path: Path) -> bool:
    """Check by its content whether a file is of a format that is read a part at a time."""
    return _format_of(codec_of_content(path, read_head(path))) is not None


def plan_regions(
    path: Path,
    source: RegionSource,
    layout: Layout,
    *,
    n_channels: int,
    size: Sequence[int],
    output_dtype: OutputDType | None = None,
    force: bool | None = False,
    n_levels: int = 1,
) -> RegionTarget:
    """Decide where a result that is written by parts goes, and as what; nothing is written yet.

    `layout` holds the axes and sizes of `source`, whose metadata the result keeps. `size` is that of the result in
    space, in the order of `layout.space`. `force` is `None` where the caller decides later whether an existing file may
    be replaced. All else, with the errors, is as in `plan_output`.
    """
    codec = codec_of_suffix(path)
    found = _format_of(codec)
    if found is None or found.is_read_only:
        raise UsageError(
            f"'{path}' cannot be written by parts, since {codec.name} files are written as a whole; choose a name for "
            f"{_listed(codec for codec, part in _formats() if not part.is_read_only)}."
        )
    check_output_files(path, codec, source.path, force=force)
    check_levels(path, codec, n_levels)
    request = WriteRequest(
        path=path,
        dtype=choose_dtype(path, source.dtype, codec, output_dtype),
        n_channels=n_channels,
        layout=layout,
        source_format=source.format_name,
        from_picture=source.is_picture,
        flavor=source.metadata.flavor,
        n_levels=n_levels,
    )
    codec.check(request)
    return found.plan(request, request.layout_of_result(n_channels, size), source)


def _formats() -> Iterator[tuple[Codec, RegionFormat]]:
    for name in REGION_FORMATS:
        yield CODECS[name], REGION_FORMATS[name]


def _format_of(codec: Codec) -> RegionFormat | None:
    return next((found for named, found in _formats() if named is codec), None)


def _listed(codecs: Iterator[Codec]) -> str:
    *names, last = (f"{codec.name} ({codec.suffixes[0]})" for codec in codecs)
    return f"{', '.join(names)} or {last}" if names else last


_CORNER = 8
"""Samples along each axis, except axes of channels and shorter ones."""


def read_corner(source: RegionSource, *, are_axes_named: bool) -> ImageFile:
    """Read a few samples of an array, with all channels, as an image.

    The image has the axes, spacing, tone curve, record and notes of the whole, but not its shape.

    Args:
        source: the array.
        are_axes_named: whether the caller named the axes.

    Raises:
        UsageError: the caller named axes that do not fit.
        MalformedInputError: the file's own axes do not fit.
    """
    axes = source.axes or tensor_axes(source.path, len(source.shape))
    try:
        layout = Layout(axes, source.shape, dimensions_of(axes))
    except UsageError as error:
        if are_axes_named:
            raise
        raise MalformedInputError(f"'{source.path}' cannot be read as it describes itself: {error}") from error
    sizes = tuple(n if letter in "CS" else min(n, _CORNER) for letter, n in zip(axes, source.shape, strict=True))
    layout = replace(layout, sizes=sizes)
    values = as_real_tensor(source.path, source.read(tuple(slice(0, n) for n in sizes)))
    return ImageFile(
        path=source.path,
        values=layout.to_images(values),
        shape=sizes,
        dtype=source.dtype,
        axes=axes,
        are_axes_named=are_axes_named or bool(source.axes),
        sha256=source.fingerprint(),
        record=source.record,
        metadata=source.metadata,
        codec=next(codec for codec in all_codecs() if codec.name == source.format_name),
        layout=layout,
    )


N_PIECES, MAX_SAMPLES = 64, 2**13
"""Pieces that are read to represent an array, and samples of each at most."""


def cube_sides(size: Sequence[int], n_samples: int) -> tuple[int, ...]:
    """Compute the sides of a piece of a frame that is as near to a cube as possible, of `n_samples` at most."""
    sides, left = dict.fromkeys(range(len(size)), 1), float(n_samples)
    for i, axis in enumerate(sorted(sides, key=lambda axis: size[axis])):
        sides[axis] = max(1, min(size[axis], int(left ** (1 / (len(size) - i)))))
        left /= sides[axis]
    return tuple(sides[axis] for axis in range(len(size)))


def spread_place(lengths: Sequence[int], number: int) -> tuple[int, ...]:
    """Compute a place of a low-discrepancy sequence in all axes, so that no two lie in one row or one page."""
    # Roberts, The unreasonable effectiveness of quasirandom sequences, 2018: powers of the root of x^(d+1) = x + 1.
    root = 2.0
    for _ in range(40):
        root = (1 + root) ** (1 / (len(lengths) + 1))
    shares = [math.modf(0.5 + number * root ** -(axis + 1))[0] for axis in range(len(lengths))]
    return tuple(min(int(share * n), n - 1) for share, n in zip(shares, lengths, strict=True))


def read_spread(source: RegionSource) -> torch.Tensor:
    """Read pieces from all over an array, shape `(n, *piece)`."""
    sides = cube_sides(source.shape, MAX_SAMPLES)
    free = [n - side + 1 for n, side in zip(source.shape, sides, strict=True)]
    pieces = []
    for number in range(N_PIECES):
        starts = zip(spread_place(free, number), sides, strict=True)
        pieces.append(as_real_tensor(source.path, source.read(tuple(slice(at, at + side) for at, side in starts))))
    return torch.stack(pieces)
