"""Reading an image: any format in, planes of (B, C, H, W) out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.io import records
from deconv_cli.io.codec import Codec
from deconv_cli.io.color_profile import recorded_curve, tone_curve_of_file
from deconv_cli.io.formats import codec_of_content, suffix_note
from deconv_cli.io.layout import Layout, tensor_axes
from deconv_cli.io.samples import as_real_tensor, check_finite
from deconv_cli.io.sources import open_source, refusing_damage
from deconv_cli.io.stored_image import Metadata, StoredImage
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.vocabulary import Light

# Exif 2.32, tag 274, "Orientation": rows become columns, and axes are flipped.
_TRANSPOSED = (5, 6, 7, 8)
_FLIPPED = {2: (-1,), 3: (-2, -1), 4: (-2,), 6: (-1,), 7: (-2, -1), 8: (-2,)}


@dataclass(frozen=True, eq=False)
class ImageFile:
    """An image as read: its samples in planes, and all that is needed to write a result in the same manner."""

    path: Path
    values: torch.Tensor
    """Shape (B, C, H, W), alpha left out, upright. The stored type, but int32 and int64 for uint16 and uint32
    (with which torch computes next to nothing), and uint8 for bool."""
    is_picture: bool
    """True for formats that a viewer shows; False for files of tensors."""
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
    """Of the upright image, without alpha."""
    _metadata: Metadata
    _alpha: torch.Tensor | None
    """Shape (B, A, H, W) with A = 1, or one alpha for each index of axis C."""
    _alpha_kind: str | None
    _codec: Codec
    jpeg_table: torch.Tensor | None = None
    """Of a JPEG, the divisors of its luma's coefficients, of the upright image, shape (8, 8)."""

    @cached_property
    def tone_curve(self) -> ToneCurve | None:
        """How the samples encode light: what `deconv forward` recorded, else what the file says; None if unknown."""
        n_channels, record = self.values.shape[1], self.record or {}
        if record.get("command") == "forward" and record.get("light") == Light.LINEAR:
            return recorded_curve(record.get("tone_curve"), self._metadata, n_channels)
        return tone_curve_of_file(self._codec, self._metadata, self.dtype, n_channels)


def read_image(
    path: Path, *, axes: str | None = None, tensor: str | None = None, series: int | None = None
) -> ImageFile:
    """Read an image from a file of any registered format.

    Args:
        path: the file; its format is recognized by its content.
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
    codec = codec_of_content(path, head)
    stored = read_stored(path, codec, choose_member(path, codec, tensor, series))
    stored = replace(stored, axes=axes.upper() if axes else stored.axes or tensor_axes(path, len(stored.shape)))
    try:
        layout = Layout(stored.axes, stored.shape)
    except UsageError as error:
        if axes:
            raise
        raise MalformedInputError(f"'{path}' cannot be read as it describes itself: {error}") from error
    values = as_real_tensor(path, stored.samples)
    check_finite(path, values, "image")
    colors, alpha, layout = _split_alpha(values, layout, stored.alpha)
    turned = _upright(layout.to_planes(colors), stored.orientation)
    return ImageFile(
        path=path,
        values=turned,
        is_picture=codec.is_picture,
        shape=stored.shape,
        dtype=stored.dtype,
        axes=stored.axes,
        sha256=sha256,
        record=(
            records.matching_record(stored.record, stored.shape)
            if codec.record_inside
            else records.matching_record_beside(records.read_beside(path), stored)
        ),
        notes=(
            *suffix_note(path, codec),
            *stored.notes,
            *_reading_notes(stored, alpha),
            *(_batch_notes(stored, layout, are_axes_given=axes is not None) if codec.is_picture else ()),
        ),
        _layout=layout.resized(Y=turned.shape[-2], X=turned.shape[-1]),
        _metadata=_upright_metadata(stored),
        _alpha=None if alpha is None else _upright(alpha, stored.orientation),
        _alpha_kind=None if alpha is None else stored.alpha,
        _codec=codec,
        jpeg_table=_upright_table(stored),
    )


def read_stored(path: Path, codec: Codec, member: str | int | None = None) -> StoredImage:
    """Let a codec read one array, and turn whatever goes wrong into an `InputRefusedError`."""
    with refusing_damage(path, f"a {codec.name} file"):
        return codec.read(path, member)


def choose_member(path: Path, codec: Codec, tensor: str | None, series: int | None) -> str | int | None:
    """Give what chooses among several arrays of a file; refuse by `UsageError` what cannot for its format."""
    for kind, member in (("tensor", tensor), ("series", series)):
        if member is not None and codec.selects != kind:
            raise UsageError(f"{kind}={member} chooses among several, but '{path}' is a {codec.name} file.")
    return series if tensor is None else tensor


def _split_alpha(
    values: torch.Tensor, layout: Layout, kind: str | None
) -> tuple[torch.Tensor, torch.Tensor | None, Layout]:
    """Take the last sample of axis S away, if it is transparency."""
    place = layout.axes.find("S")
    n_colors = layout.sizes[place] - 1
    if kind is None or place < 0 or n_colors < 1:
        return values, None, layout
    alpha = layout.resized(S=1).to_planes(values.narrow(place, n_colors, 1))
    return values.narrow(place, 0, n_colors), alpha, layout.resized(S=n_colors)


def _reading_notes(stored: StoredImage, alpha: torch.Tensor | None) -> tuple[str, ...]:
    notes = []
    if stored.orientation != 1:
        notes.append(f"orientation {stored.orientation} was applied, so that rows and columns are upright")
    shape = stored.shape
    if stored.axes == "CYX" and shape[2] in (3, 4) and shape[0] not in (1, 3, 4):
        notes.append(
            f"the samples were read as {shape[0]} channels of {shape[1]}×{shape[2]} pixels; if the last axis holds "
            'the colors, choose axes="YXC"'
        )
    if stored.dtype == "bool":
        notes.append("true and false were read as 1 and 0")
    if alpha is not None:
        notes.append("the alpha channel was set aside")
    if alpha is not None and stored.alpha == "associated":
        notes.append("the colors are premultiplied with alpha and were taken as stored")
    return tuple(notes)


def _batch_notes(stored: StoredImage, layout: Layout, *, are_axes_given: bool) -> tuple[str, ...]:
    if layout.n_batch == 1:
        return ()
    letters = "".join(stored.axes[i] for i in layout.batch_axes)
    is_unclear = letters in ("I", "Q") and not are_axes_given
    hint = '; if they are the channels of one image, say so with axes="CYX"' if is_unclear else ""
    return (f"{layout.n_batch} planes (axes {letters}) are worked on one by one{hint}",)


def _upright_table(stored: StoredImage) -> torch.Tensor | None:
    if stored.jpeg_table is None:
        return None
    table = torch.tensor(stored.jpeg_table).reshape(8, 8)
    return table.T if stored.orientation in _TRANSPOSED else table


def _upright_metadata(stored: StoredImage) -> Metadata:
    metadata = stored.metadata
    if metadata.resolution is None or stored.orientation not in _TRANSPOSED:
        return metadata
    return replace(metadata, resolution=metadata.resolution.transposed())


def _upright(values: torch.Tensor, orientation: int) -> torch.Tensor:
    """Turn stored samples upright: `(..., H, W)`, and `(..., W, H)` for orientations 5 to 8 of 1 to 8."""
    turned = values.transpose(-2, -1) if orientation in _TRANSPOSED else values
    return turned.flip(_FLIPPED.get(orientation, ())).contiguous()
