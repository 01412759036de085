"""A corner of a large array as an image: all that a file says of itself, in the form that the commands know."""

from __future__ import annotations

from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.io.formats import all_codecs
from deconv_cli.io.image import ImageFile
from deconv_cli.io.layout import Layout, dimensions_of, tensor_axes
from deconv_cli.io.regions.region_source import RegionSource
from deconv_cli.io.samples import as_real_tensor

CORNER = 8
"""Samples along each axis that is neither channels nor shorter."""


def read_corner(source: RegionSource, *, are_axes_named: bool) -> ImageFile:
    """Read a few samples of an array, with all channels, as an image of its own.

    Its axes, spacing, tone curve, record and notes are those of the whole; its shape and size are not.

    Args:
        source: the array.
        are_axes_named: whether the caller named the axes.

    Raises:
        UsageError: the caller named axes that do not fit.
        MalformedInputError: the file's own do not.
    """
    axes = source.axes or tensor_axes(source.path, len(source.shape))
    try:
        layout = Layout(axes, source.shape, dimensions_of(axes))
    except UsageError as error:
        if are_axes_named:
            raise
        raise MalformedInputError(f"'{source.path}' cannot be read as it describes itself: {error}") from error
    sizes = tuple(n if letter in "CS" else min(n, CORNER) for letter, n in zip(axes, source.shape, strict=True))
    values = as_real_tensor(source.path, source.read(tuple(slice(0, n) for n in sizes)))
    return ImageFile(
        path=source.path,
        values=Layout(axes, sizes, layout.dimensions).to_images(values),
        is_picture=source.is_picture,
        shape=sizes,
        dtype=source.dtype,
        axes=axes,
        are_axes_named=are_axes_named or bool(source.axes),
        sha256=source.fingerprint(),
        record=source.record,
        _notes=(),
        _layout=Layout(axes, sizes, layout.dimensions),
        _metadata=source.metadata,
        _alpha=None,
        _alpha_kind=None,
        _codec=next(codec for codec in all_codecs() if codec.name == source.format_name),
    )
