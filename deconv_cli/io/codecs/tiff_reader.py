"""What a TIFF file means: its channels, its transparency, its metadata."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from deconv_cli.errors import MalformedInputError
from deconv_cli.io import exif, records
from deconv_cli.io.codecs import tiff_imagej, tiff_ome
from deconv_cli.io.codecs.tiff_library import choose_series, opened_tiff, read_samples
from deconv_cli.io.stored_image import Metadata, Resolution, StoredImage, pyramid_notes, zeros_of

DESCRIPTION, WHITE_IS_ZERO = "TIFF description", "white-is-zero display"
"""Names among `Metadata.native`."""
CHANNEL_NAMES, PLANE_DISTANCE = "channel_names", "PhysicalSizeZ"
"""Members of the JSON description of plain files; the distance is in micrometers."""

_PHOTOMETRIC, _ORIENTATION, _EXTRA_SAMPLES = 262, 274, 338
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_COLOR_MAP, _ICC_PROFILE = 320, 34675
_MIN_IS_WHITE, _PALETTE = 0, 3
_NOT_ADDITIVE = {5: "CMYK", 8: "CIELAB", 32803: "the mosaic of a camera", 34892: "the raw colors of a camera"}
_SHAPED_STARTS = ('{"shape":', "shape=(")
"""Of descriptions that tifffile itself wrote."""

_UNDERSTOOD = {
    *(254, 255, 256, 257, 258, 259, 262, 263, 266, 269, 270, 273, 274, 277, 278, 279, 280, 281, 282, 283, 284),
    *(292, 293, 296, 297, 305, 317, 320, 322, 323, 324, 325, 330, 338, 339, 340, 341, 347, 529, 530, 531, 532),
    *(32996, 32997, 34675, 50838, 50839, *exif.TEXT_TAGS),
}
"""Tags that are read here, that say how the samples are stored, or that are written anew."""


def read_tiff(path: Path, *, series: int | None) -> StoredImage:
    """Read one series of a TIFF file.

    Raises:
        UsageError: no series of this number.
        InputRefusedError: damaged, too large, or in a color model that is not understood.
    """
    with opened_tiff(path) as (opened, ome):
        index, chosen = choose_series(path, opened, series)
        image = describe_series(path, opened, ome, index, chosen)
        image = replace(image, samples=read_samples(chosen))
        return _with_palette(path, image, chosen.keyframe) if has_palette(chosen) else image


def describe_series(path: Path, opened: Any, ome: Element | None, index: int, chosen: Any) -> StoredImage:  # noqa: ANN401
    """Gather all that a file says of one series; the samples are zeros that take no memory.

    Raises:
        MalformedInputError: it holds other samples than its OME description says, or a color model that is not
            understood.
    """
    page, imagej = chosen.keyframe, dict(opened.imagej_metadata or {})
    shaped = dict((opened.shaped_metadata or ({},) * (index + 1))[index])
    photometric = page.tags.valueof(_PHOTOMETRIC, default=1)
    if photometric in _NOT_ADDITIVE:
        name = _NOT_ADDITIVE[photometric]
        raise MalformedInputError(f"'{path}' should be gray, RGB or channels, but is {name}; convert it first.")
    metadata, record = _tag_metadata(page, has_unit_elsewhere=bool(imagej)), shaped.get(records.KEYWORD)
    notes = pyramid_notes(len(chosen.levels) - 1)
    if imagej:
        metadata, record = tiff_imagej.read_fields(imagej, metadata)
    elif ome is not None:
        metadata, record = tiff_ome.read_fields(path, ome, index, metadata)
        _check_size(path, chosen.shape, tiff_ome.n_samples_described(ome)[index])
        notes += tiff_ome.size_notes(ome, index)
    else:
        metadata = _with_description(page.description, shaped, metadata)
    return StoredImage(
        samples=zeros_of(chosen.shape, chosen.dtype.newbyteorder("=")),
        axes=chosen.axes,
        metadata=metadata,
        record=record if isinstance(record, dict) else None,
        alpha=_alpha(page) if "S" in chosen.axes else None,
        orientation=_orientation(page),
        notes=notes,
    )


def has_palette(chosen: Any) -> bool:  # noqa: ANN401
    """Check whether the samples of a series are indices into a table of colors."""
    photometric = chosen.keyframe.tags.valueof(_PHOTOMETRIC, default=1)
    return bool(photometric == _PALETTE) and "S" not in chosen.axes


def _tag_metadata(page: Any, *, has_unit_elsewhere: bool) -> Metadata:  # noqa: ANN401
    """Gather what the tags of a page say."""
    tags = page.tags
    texts = {code: str(tags.valueof(code)) for code in exif.TEXT_TAGS if tags.valueof(code)}
    icc_profile = tags.valueof(_ICC_PROFILE)
    unsupported = sorted({tag.name for tag in tags if tag.code not in _UNDERSTOOD})
    return Metadata(
        resolution=_resolution(tags, has_unit_elsewhere=has_unit_elsewhere),
        icc_profile=bytes(icc_profile) if icc_profile else None,
        exif=exif.block_of_texts(texts) if texts else None,
        native={WHITE_IS_ZERO: True} if tags.valueof(_PHOTOMETRIC, default=1) == _MIN_IS_WHITE else {},
        unsupported=tuple(f"TIFF tag {name}" for name in unsupported),
    )


def _resolution(tags: Any, *, has_unit_elsewhere: bool) -> Resolution | None:  # noqa: ANN401
    x, y = tags.valueof(_X_RESOLUTION), tags.valueof(_Y_RESOLUTION)
    unit = {2: "inch", 3: "centimeter"}.get(tags.valueof(_RESOLUTION_UNIT, default=2), "")
    # 1/1 without a unit is what writers put where they know nothing.
    are_fractions = all(isinstance(value, tuple) and len(value) == 2 and all(value) for value in (x, y))
    if not are_fractions or (not unit and x == y == (1, 1) and not has_unit_elsewhere):
        return None
    across, down = Fraction(*map(int, x)), Fraction(*map(int, y))
    return Resolution(across, down, unit) if min(across, down) > 0 else None


def _with_description(description: str, shaped: dict[str, Any], metadata: Metadata) -> Metadata:
    """Add what the description of a plain file says, as a text or in JSON."""
    native, resolution = dict(metadata.native), metadata.resolution
    if description and not (shaped and description.startswith(_SHAPED_STARTS)):
        native[DESCRIPTION] = description
    distance = shaped.get(PLANE_DISTANCE)
    if resolution and resolution.unit and isinstance(distance, float) and 0 < distance < 1e30:
        resolution = replace(resolution.per("µm"), plane_distance=Fraction(str(distance))).per(resolution.unit)
    names = shaped.get(CHANNEL_NAMES)
    channel_names = tuple(str(name) for name in names) if isinstance(names, list) else ()
    return replace(metadata, resolution=resolution, channel_names=channel_names, native=native)


def _orientation(page: Any) -> int:  # noqa: ANN401
    found = page.tags.valueof(_ORIENTATION, default=1)
    return int(found) if isinstance(found, int) and 1 <= found <= 8 else 1


def _alpha(page: Any) -> str | None:  # noqa: ANN401
    extra = page.tags.valueof(_EXTRA_SAMPLES)
    kinds = extra if isinstance(extra, tuple) else (extra,)
    return {1: "associated", 2: "unassociated"}.get(kinds[0]) if len(kinds) == 1 else None


def _check_size(path: Path, shape: tuple[int, ...], n_described: int) -> None:
    n_samples = math.prod(shape)
    if n_described != n_samples:
        raise MalformedInputError(
            f"'{path}' should hold {n_described} samples as its OME description says, but holds {n_samples}; it is cut "
            "short or damaged."
        )


def _with_palette(path: Path, image: StoredImage, page: Any) -> StoredImage:  # noqa: ANN401
    """Turn indices into colors; the table holds all reds, then all greens, then all blues, of 16 bits.

    Raises:
        MalformedInputError: the table is missing, or shorter than an index asks for.
    """
    if image.metadata.flavor:
        # Microscopists color gray values for display; the indices are the measurement.
        return image.noting("the color table is for display only and was not applied")
    indices = np.asarray(image.samples)
    table = np.asarray(page.tags.valueof(_COLOR_MAP, default=()), dtype=np.uint16).reshape(-1)
    n_colors, largest = table.size // 3, int(indices.max(initial=0))
    if table.size % 3 or indices.dtype.kind not in "ui" or largest >= n_colors:
        raise MalformedInputError(
            f"'{path}' should have a palette with a color for every index, but it has {n_colors} colors and indices "
            f"up to {largest}; export it again as gray or RGB."
        )
    is_eight_bit = not (table % 257).any()
    colors = ((table // 257).astype(np.uint8) if is_eight_bit else table).reshape(3, n_colors).T
    samples = np.take(colors, indices.astype(np.intp), axis=0)
    return replace(image, samples=samples, axes=image.axes + "S").noting("the palette was expanded to colors")
