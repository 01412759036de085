"""Reading an image: any format in, planes of (B, C, H, W) out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from deconv_cli.errors import UsageError
from deconv_cli.io import orientation, records
from deconv_cli.io.contents import Contents, Metadata
from deconv_cli.io.formats import SIDECAR_FORMATS, FileFormat, format_of_content, suffix_note
from deconv_cli.io.layout import Layout
from deconv_cli.io.samples import as_real_tensor, check_finite
from deconv_cli.io.sources import open_source


@dataclass(frozen=True, eq=False)
class ImageFile:
    """An image as read: its samples in planes, and all that is needed to write a result in its manner."""

    path: Path
    values: torch.Tensor
    """Shape (B, C, H, W), alpha left out, upright. The stored type, but int32 and int64 for uint16 and uint32
    (with which torch computes next to nothing), and uint8 for bool."""
    is_picture: bool
    """True for TIFF, PNG, JPEG and WebP; False for files of tensors."""
    shape: tuple[int, ...]
    """As stored in the file, the alpha sample included; of a palette picture, after the palette was applied."""
    dtype: str
    """As stored in the file, by its NumPy name."""
    axes: str
    """The letters of `shape`."""
    sha256: str
    """Of all bytes of the file."""
    record: dict[str, Any] | None
    """What an earlier run wrote into the file or beside it, if it fits this file's shape."""
    notes: tuple[str, ...]
    """What was done on reading, a sentence each."""
    _layout: Layout
    _metadata: Metadata
    _alpha: torch.Tensor | None
    """Shape (B, A, H, W) with A = 1, or one alpha for each index of axis C."""
    _alpha_kind: str | None
    _flavor: str


def read_image(
    path: Path, *, axes: str | None = None, tensor: str | None = None, series: int | None = None
) -> ImageFile:
    """Read an image from a file of any format understood.

    Args:
        path: the file; its format is told from its content.
        axes: letters of the stored axes, in place of what the file says: Y and X the plane, C and S channels,
            every other letter batch.
        tensor: name of the tensor, where a file holds several.
        series: number of the TIFF series, where a file holds several.

    Returns:
        The image, upright, its alpha set aside.

    Raises:
        UsageError: no such file, tensor or series, or axes that do not fit.
        FileAccessError: the file cannot be read.
        InputRefusedError: damaged, unsafe, too large, or not finite real numbers.
    """
    path = Path(path)
    head, sha256 = open_source(path)
    file_format = format_of_content(path, head)
    _refuse_options(path, file_format, tensor, series)
    contents = read_contents(path, file_format, axes=axes, tensor=tensor, series=series)
    values = as_real_tensor(path, contents.samples)
    check_finite(path, values, "image")
    if axes is not None:
        contents = replace(contents, axes=axes.upper())
    layout = Layout(contents.axes, contents.shape)
    colors, alpha, layout = _split_alpha(values, layout, contents.alpha)
    turned = orientation.upright(layout.to_planes(colors), contents.orientation)
    return ImageFile(
        path=path,
        values=turned,
        is_picture=file_format.is_picture,
        shape=contents.shape,
        dtype=contents.dtype,
        axes=contents.axes,
        sha256=sha256,
        record=(
            records.matching_record_beside(contents.record, contents.shape, contents.dtype, contents.samples)
            if file_format in SIDECAR_FORMATS
            else records.matching_record(contents.record, contents.shape)
        ),
        notes=(*suffix_note(path, file_format), *contents.notes, *_reading_notes(contents, alpha)),
        _layout=layout.with_plane(*turned.shape[-2:]),
        _metadata=_upright_metadata(contents),
        _alpha=None if alpha is None else orientation.upright(alpha, contents.orientation),
        _alpha_kind=None if alpha is None else contents.alpha,
        _flavor=contents.flavor,
    )


def read_contents(
    path: Path,
    file_format: FileFormat,
    *,
    axes: str | None = None,
    tensor: str | None = None,
    series: int | None = None,
) -> Contents:
    """Let the codec of a format read a file. Only that codec is imported."""
    if file_format is FileFormat.TIFF:
        from deconv_cli.io.tiff_reader import read_tiff

        return read_tiff(path, series=series)
    if file_format.is_picture:
        from deconv_cli.io.pictures import read_picture

        return read_picture(path, file_format)
    from deconv_cli.io.tensors import read_tensor_image

    return read_tensor_image(path, file_format, axes=axes, tensor=tensor)


def _refuse_options(path: Path, file_format: FileFormat, tensor: str | None, series: int | None) -> None:
    if tensor is not None and file_format.is_picture:
        raise UsageError(f"--tensor chooses among named tensors, but '{path}' is a {file_format} file.")
    if series is not None and file_format is not FileFormat.TIFF:
        raise UsageError(f"--series chooses among the series of a TIFF file, but '{path}' is a {file_format} file.")


def _split_alpha(
    values: torch.Tensor, layout: Layout, kind: str | None
) -> tuple[torch.Tensor, torch.Tensor | None, Layout]:
    """Take the last sample of axis S away, if it is transparency."""
    if kind is None or "S" not in layout.axes:
        return values, None, layout
    place = layout.axes.index("S")
    n_samples = layout.sizes[place]
    if n_samples < 2:
        return values, None, layout

    def with_samples(n: int) -> Layout:
        return Layout(layout.axes, (*layout.sizes[:place], n, *layout.sizes[place + 1 :]))

    alpha = with_samples(1).to_planes(values.narrow(place, n_samples - 1, 1))
    return values.narrow(place, 0, n_samples - 1), alpha, with_samples(n_samples - 1)


def _reading_notes(contents: Contents, alpha: torch.Tensor | None) -> tuple[str, ...]:
    notes = []
    if contents.orientation != 1:
        notes.append(f"orientation {contents.orientation} was applied, so that rows and columns are upright")
    shape = contents.shape
    if contents.axes == "CYX" and shape[2] in (3, 4) and shape[0] not in (1, 3, 4):
        notes.append(
            f"the samples were read as {shape[0]} channels of {shape[1]}×{shape[2]} pixels; if the last axis holds "
            "the colors, pass --axes YXC"
        )
    if contents.dtype == "bool":
        notes.append("true and false were read as 1 and 0")
    if alpha is not None:
        notes.append("the alpha channel was set aside")
    if alpha is not None and contents.alpha == "associated":
        notes.append("the colors are premultiplied with alpha and were taken as stored")
    return tuple(notes)


def _upright_metadata(contents: Contents) -> Metadata:
    metadata = contents.metadata
    if metadata.resolution is None or not orientation.turns_sideways(contents.orientation):
        return metadata
    return replace(metadata, resolution=metadata.resolution.transposed())
