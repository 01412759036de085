"""Reading an image of any format as a tensor (B, C, H, W), or with another number of axes of space."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deconv_cli.errors import DeconvError, MalformedInputError, ShapeError, UsageError
from deconv_cli.io import records
from deconv_cli.io.codec import Codec, StoredImage, codec_of_content, suffix_note
from deconv_cli.io.files import open_source, read_head, refusing_damage
from deconv_cli.io.layout import (
    SPACE,
    Layout,
    as_real_tensor,
    check_finite,
    dimensions_of,
    letters_of_tensor,
    tensor_axes,
)
from deconv_cli.io.metadata import Metadata
from deconv_cli.vocabulary import Light, counted

if TYPE_CHECKING:
    import torch

    from deconv_cli.io.region_arrays import RegionSource
    from deconv_cli.tone_curve import ToneCurve

# Exif 2.32, tag 274, "Orientation": rows become columns, and axes are flipped.
_TRANSPOSED = (5, 6, 7, 8)
_FLIPPED = {2: (-1,), 3: (-2, -1), 4: (-2,), 6: (-1,), 7: (-2, -1), 8: (-2,)}
_UNNAMED = "IQ"
"""Axes of pages that the file does not name."""


@dataclass(frozen=True, eq=False)
class ImageFile:
    """An image as read: data, axes, metadata, and everything that writing a result in the same form needs."""

    path: Path
    values: torch.Tensor
    """Shape (B, C, H, W), or another number of axes of space; upright. The stored type, but int32 and int64 for
    uint16 and uint32 (with which torch computes next to nothing), and uint8 for bool."""
    shape: tuple[int, ...]
    """As stored in the file, without alpha; of a palette picture, after the palette was applied."""
    dtype: str
    """As stored in the file, by its NumPy name."""
    axes: str
    """The letters of `shape`."""
    are_axes_named: bool
    """True where the file, its record or the caller names the axes; False where they follow from their number."""
    sha256: str
    """Of all bytes of the file."""
    record: dict[str, Any] | None
    """Of the run that wrote the file, if it fits the shape."""
    metadata: Metadata
    codec: Codec
    layout: Layout
    """Of the upright image."""
    jpeg_table: torch.Tensor | None = None
    """The divisors of a JPEG's luma coefficients, of the upright image, shape (8, 8)."""
    _notes: tuple[str, ...] = ()

    @property
    def format_name(self) -> str:
        """The name of the format in messages."""
        return self.codec.name

    @property
    def is_picture(self) -> bool:
        """True for formats that a viewer shows; False for files of tensors."""
        return self.codec.is_picture

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on how the file was read, a sentence each."""
        return (*self._notes, *(_batch_notes(self) if self.is_picture else ()))

    @property
    def dimensions(self) -> int:
        """How many of the last axes of `values` are space."""
        return self.layout.dimensions

    @property
    def named_dimensions(self) -> int | None:
        """Number of axes of space that the letters name, or with unnamed pages of one channel; `None` if unknown.

        An array with a single axis is always a signal.
        """
        if not self.are_axes_named:
            return 1 if len(self.axes) == 1 else None
        pages = "ZIQ" if self.layout.n_channels == 1 else "Z"
        has_depth = any(n > 1 and a in pages for a, n in zip(self.axes, self.layout.sizes, strict=True))
        return 3 if has_depth and self.dimensions == 2 else self.dimensions

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Distances of neighboring samples along the axes of space, in micrometers.

        None if a distance is unknown, or if the file has only a print resolution.
        """
        known = self.metadata.density
        is_of_print = not self.metadata.flavor and known is not None and known.plane_distance is None
        if known is None or not known.unit or is_of_print:
            return None
        per_micrometer = known.per("µm")
        distances = (per_micrometer.plane_distance, 1 / per_micrometer.y, 1 / per_micrometer.x)[-self.dimensions :]
        return None if None in distances else tuple(float(d) for d in distances if d is not None)

    @property
    def native_fields(self) -> dict[str, object]:
        """Fields that only files of this format hold, of the image and of its channels, by their names in notes."""
        return {**self.metadata.native, **self.metadata.native_of_channels}

    def spanned_by(self, dimensions: int, n_space: int | None = None) -> ImageFile:
        """Arrange the samples for a kernel that spans another number of axes of space: shape (B, C, *space).

        Args:
            dimensions: 3 for stacks (Z, Y and X), 2 for pictures (Y and X), 1 for signals (X).
            n_space: axes of space of the images, where a kernel spans only the last of them; names the axes of a
                tensor.

        Raises:
            ShapeError: the image lacks one of these axes.
        """
        if dimensions == self.dimensions and n_space in (None, dimensions):
            return self
        axes, notes = self._axes_spanned_by(dimensions, n_space or dimensions)
        layout = Layout(axes, self.layout.sizes, dimensions)
        values = layout.to_images(self.layout.from_images(self.values))
        return replace(self, values=values, axes=axes, _notes=(*self._notes, *notes), layout=layout)

    def _axes_spanned_by(self, dimensions: int, n_space: int) -> tuple[str, tuple[str, ...]]:
        """Name the axes so that all of space is among them; return a note on guesses, too."""
        space, axes = SPACE[-dimensions:], self.axes
        if dimensions == 1 and self.is_picture:
            raise ShapeError(
                f"the kernel has 1 axis, like the kernel of a signal, but '{self.path}' is a picture; give a kernel "
                "with two axes, for instance of shape (1, k) for a blur along the rows."
            )
        if not self.are_axes_named:
            axes = letters_of_tensor(len(axes), n_space) or ""
        missing = [letter for letter in space if letter not in axes]
        pages = [letter for letter in axes if letter in _UNNAMED]
        if missing == ["Z"] and len(pages) == 1:
            taken = f"the pages (axis {pages[0]}) were read as planes along Z; if this is wrong, choose "
            return axes.replace(pages[0], "Z"), (f'{taken}axes="{axes.replace(pages[0], "T")}"',)
        if missing:
            spans = "1 axis" if dimensions == 1 else f"{dimensions} axes"
            n_axes = max(len(self.axes), dimensions)
            letters = letters_of_tensor(n_axes, dimensions) or f"T{letters_of_tensor(5, dimensions)}"
            advice, n_named = f'choose axes="{letters}" if this is wrong', len(self.axes.replace("S", ""))
            if n_named < dimensions:
                advice = f"give a kernel with {counted(n_named, 'axis', 'axes')}"
            raise ShapeError(
                f"the kernel spans {spans} ({space}), but the image '{self.path}' of shape {self.shape} has axes "
                f"{self.axes}; {advice}."
            )
        return axes, ()

    @cached_property
    def tone_curve(self) -> ToneCurve | None:
        """The encoding of light: as recorded by `deconv forward`, else as in the file; None if unknown."""
        from deconv_cli.io.color_profile import recorded_curve, tone_curve_of_file

        n_channels, record = self.values.shape[1], self.record or {}
        if record.get("command") == "forward" and record.get("light") == Light.LINEAR:
            return recorded_curve(record.get("tone_curve"), self.metadata, n_channels)
        return tone_curve_of_file(self.codec, self.metadata, self.dtype, n_channels)


def read_image(
    path: Path, *, axes: str | None = None, tensor: str | None = None, series: int | None = None
) -> ImageFile:
    """Read an image from a file of any registered format.

    Args:
        path: the file; its format is recognized by its content.
        axes: letters of the stored axes, instead of those in the file: Z, Y and X are space, C and S channels,
            every other letter batch.
        tensor: name of the tensor, if a file holds several.
        series: number of the TIFF series, if a file holds several.

    Returns:
        The image, upright, as planes, one by one; as lines where it has no planes. See
        `ImageFile.spanned_by` for stacks.

    Raises:
        UsageError: no such file, tensor or series, or axes that do not fit.
        FileAccessError: the file cannot be read.
        InputRefusedError: damaged, unsafe, too large, or not finite real numbers.
    """
    if axes == "":
        raise UsageError("axes must be a letter for each axis, for instance CYX, but it is empty; leave it out.")
    path = Path(path)
    head, sha256 = open_source(path)
    codec = codec_of_content(path, head)
    stored = read_stored(path, codec, choose_member(path, codec, tensor, series))
    record = (
        records.matching_record(stored.record, stored.shape)
        if codec.record_inside
        else records.matching_record_beside(records.read_beside(path), stored.samples)
    )
    stored = replace(stored, axes=stored.axes or records.recorded_axes(record), record=record)
    return image_of(path, codec, stored, sha256, axes)


def is_result(path: Path) -> bool:
    """Check by its record whether deconv wrote a file; `False` if the file cannot be read.

    The samples are read only if a hash of them ties them to a record beside the file.
    """
    try:
        codec = codec_of_content(path, read_head(path))
        if not codec.record_inside:
            return read_image(path).record is not None
        found = _read_header(path)
    except DeconvError:
        return False
    return records.matching_record(found.record, found.shape) is not None


def _read_header(path: Path, tensor: str | None = None, series: int | None = None) -> StoredImage | RegionSource:
    codec = codec_of_content(path, read_head(path))
    with refusing_damage(path, codec.name):
        return codec.read_header(path, choose_member(path, codec, tensor, series))


def fault_of(path: Path, tensor: str | None = None, series: int | None = None) -> DeconvError | None:
    """Return why an input, or the one of its arrays that is named, cannot be read; `None` if its header can."""
    try:
        _read_header(path, tensor, series)
    except DeconvError as error:
        return error
    return None


def image_of(path: Path, codec: Codec, stored: StoredImage, sha256: str, axes: str | None = None) -> ImageFile:
    """Arrange the stored samples of a file as an upright image.

    `stored` holds the record of the file if that fits; `axes` are letters that the caller gives in place of the file's.

    Raises:
        UsageError: axes of the caller that do not fit.
        MalformedInputError: axes of the file that do not fit, or no finite real numbers.
    """
    import torch

    named = axes.upper() if axes else stored.axes
    stored = replace(stored, axes=named or tensor_axes(path, len(stored.shape)))
    try:
        layout = Layout(stored.axes, stored.shape, dimensions_of(stored.axes))
    except UsageError as error:
        if axes:
            raise
        raise MalformedInputError(f"'{path}' does not fit its own description: {error}") from error
    values = as_real_tensor(path, stored.samples)
    check_finite(path, values, "image")
    turned = _upright(layout.to_images(values), stored.orientation)
    metadata, jpeg_table = stored.metadata, None
    if stored.jpeg_table is not None:
        jpeg_table = torch.tensor(stored.jpeg_table).reshape(8, 8)
    if stored.orientation in _TRANSPOSED:
        density = metadata.density and metadata.density.transposed()
        metadata, jpeg_table = replace(metadata, density=density), None if jpeg_table is None else jpeg_table.T
    return ImageFile(
        path=path,
        values=turned,
        shape=stored.shape,
        dtype=stored.dtype,
        axes=stored.axes,
        are_axes_named=bool(named),
        sha256=sha256,
        record=stored.record,
        metadata=metadata,
        codec=codec,
        layout=layout.resized_space(turned.shape[2:]),
        jpeg_table=jpeg_table,
        _notes=(*suffix_note(path, codec), *stored.notes, *_reading_notes(stored)),
    )


def read_stored(path: Path, codec: Codec, member: str | int | None = None) -> StoredImage:
    """Read one array by a codec; turn every error into an `InputRefusedError`."""
    article = "an" if codec.name[0] in "AEIO" else "a"
    with refusing_damage(path, f"{article} {codec.name} file"):
        return codec.read(path, member)


def choose_member(path: Path, codec: Codec, tensor: str | None, series: int | None) -> str | int | None:
    """Choose among several arrays of a file; raises `UsageError` if the format has no such choice."""
    for kind, member in (("tensor", tensor), ("series", series)):
        if member is not None and codec.selects != kind:
            raise UsageError(
                f"'{path}' is a {codec.name} file, which has no choice of {kind}; leave out {kind}={member}."
            )
    return series if tensor is None else tensor


def _reading_notes(stored: StoredImage) -> tuple[str, ...]:
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
    return tuple(notes)


def _batch_notes(image: ImageFile) -> tuple[str, ...]:
    layout = image.layout
    if layout.n_batch == 1:
        return ()
    letters = "".join(image.axes[i] for i in layout.batch_axes)
    what = "planes" if layout.dimensions == 2 else "stacks" if layout.dimensions == 3 else "lines"
    hint = '; if they are the channels of one image, choose axes="CYX"' if letters in _UNNAMED else ""
    if "Z" in letters and layout.sizes[image.axes.index("Z")] > 1:
        hint = "; a kernel of three axes works along Z too"
    return (f"{layout.n_batch} {what} (axes {letters}) are processed separately{hint}",)


def _upright(values: torch.Tensor, orientation: int) -> torch.Tensor:
    """Turn stored samples upright: `(..., H, W)`, or `(..., W, H)` for the orientations 5 to 8."""
    turned = values.transpose(-2, -1) if orientation in _TRANSPOSED else values
    flipped = _FLIPPED.get(orientation)
    return (turned.flip(flipped) if flipped else turned).contiguous()
