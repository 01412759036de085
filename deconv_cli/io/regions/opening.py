"""Opening a large array in a file, and planning where another one goes, whatever the format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.io.codec import Codec, WriteRequest
from deconv_cli.io.formats import codec_of_content, codec_of_suffix
from deconv_cli.io.image import choose_member
from deconv_cli.io.layout import Layout
from deconv_cli.io.output import check_levels, check_output_files, choose_dtype
from deconv_cli.io.regions.region_source import RegionSource
from deconv_cli.io.regions.region_target import RegionFormat, RegionTarget
from deconv_cli.io.samples import UNDERSTOOD
from deconv_cli.io.sources import read_head
from deconv_cli.parts import CODECS, REGION_FORMATS
from deconv_cli.vocabulary import OutputDType


def open_regions(
    path: Path, *, axes: str | None = None, series: int | None = None, tensor: str | None = None
) -> RegionSource:
    """Open an array that is read a part at a time.

    Args:
        path: the file; its format is recognized by its content.
        axes: letters of the stored axes, in place of what the file says.
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
    """Tell by its content whether a file is of a format that is read a part at a time."""
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

    Args:
        path: its suffix decides the format.
        source: the array that the result is computed from, whose metadata it keeps.
        layout: axes and sizes of that array.
        n_channels: channels of the result.
        size: of the result in space, as the axes of `layout.space` have it.
        output_dtype: its sample type; None for float32.
        force: whether an existing file may be replaced; `None` where the caller will find out what is there.
        n_levels: how many resolutions are stored, each half the one before.

    Raises:
        UsageError: no such folder, an existing file without `force`, or a format that cannot hold the result.
        FileAccessError: no permission to write into the folder.
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
    """Go through the formats that are read by parts."""
    for name in REGION_FORMATS:
        yield CODECS[name], REGION_FORMATS[name]


def _format_of(codec: Codec) -> RegionFormat | None:
    return next((found for named, found in _formats() if named is codec), None)


def _listed(codecs: Iterator[Codec]) -> str:
    *names, last = (f"{codec.name} ({codec.suffixes[0]})" for codec in codecs)
    return f"{', '.join(names)} or {last}" if names else last
