"""The meaning of a TIFF file: its channels, its transparency, its metadata, of the plain, ImageJ's or OME's kind."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from deconv_cli.errors import MalformedInputError
from deconv_cli.io import records
from deconv_cli.io.codec import StoredImage, pyramid_notes, zeros_of
from deconv_cli.io.codecs import tiff_ome
from deconv_cli.io.codecs.tiff_library import choose_series, opened_tiff
from deconv_cli.io.metadata import EXIF_TEXTS, Metadata, Resolution, exif_of_texts

DESCRIPTION, WHITE_IS_ZERO, IMAGEJ = "TIFF description", "white-is-zero display", "ImageJ "
"""Names among `Metadata.native`; those of ImageJ's fields begin with `ImageJ `."""
CHANNEL_NAMES, PLANE_DISTANCE = "channel_names", "PhysicalSizeZ"
"""Members of the JSON description of plain files; the distance is in micrometers."""

_PHOTOMETRIC, _ORIENTATION, _EXTRA_SAMPLES = 262, 274, 338
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_ICC_PROFILE = 34675
_MIN_IS_WHITE, _PALETTE = 0, 3
_NOT_ADDITIVE = {
    **{_PALETTE: "indices of a palette", 5: "CMYK", 8: "CIELAB"},
    **{32803: "the mosaic of a camera", 34892: "the raw colors of a camera"},
}
_SHAPED_STARTS = ('{"shape":', "shape=(")
"""Of descriptions that tifffile itself wrote."""
_UNDERSTOOD = {
    *(254, 255, 256, 257, 258, 259, 262, 263, 266, 269, 270, 273, 274, 277, 278, 279, 280, 281, 282, 283, 284),
    *(292, 293, 296, 297, 305, 317, 320, 322, 323, 324, 325, 330, 338, 339, 340, 341, 347, 529, 530, 531, 532),
    *(32996, 32997, 34675, 50838, 50839, *EXIF_TEXTS),
}
"""Tags that are read here, that describe the storage of the samples, or that the writer makes itself."""

_IMAGEJ_COUNTS = ("ImageJ", "images", "channels", "slices", "frames", "hyperstack")
"""Fields that follow from the axes."""
_IMAGEJ_CHANNELS = ("Ranges", "LUTs", "Labels", "mode")
_IMAGEJ_UNITS = {
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns", "\\u00B5m"), "µm"),
    **{unit: unit for unit in ("nm", "mm", "cm", "m", "in", "inch")},
}


def read_tiff(path: Path, number: int | None) -> StoredImage:
    """Read one series of a TIFF file; raises as `opened_series` does."""
    with opened_series(path, number) as (image, series):
        samples = series.asarray(maxworkers=1)
        native = samples.astype(samples.dtype.newbyteorder("="), copy=False).reshape(series.shape)
        return replace(image, samples=native)


@contextmanager
def opened_series(path: Path, number: int | None, *, by_parts: bool = False) -> Iterator[tuple[StoredImage, Any]]:
    """Open one series: gives its metadata with samples of zeros that take no memory, and tifffile's series.

    Raises:
        UsageError: no series of this number.
        InputRefusedError: damaged, too large, or in a color model that is not understood.
    """
    with opened_tiff(path, by_parts=by_parts) as (opened, ome):
        index, series = choose_series(path, opened, number, by_parts=by_parts)
        page, imagej = series.keyframe, dict(opened.imagej_metadata or {})
        shaped = dict((opened.shaped_metadata or ({},) * (index + 1))[index])
        photometric = page.tags.valueof(_PHOTOMETRIC, default=1)
        is_microscopy, notes = bool(imagej) or ome is not None, pyramid_notes(len(series.levels) - 1)
        if photometric == _PALETTE and is_microscopy:
            # Microscopists color gray values for display; the indices are the measurement.
            notes += ("the color table is for display only and was not applied",)
        elif photometric in _NOT_ADDITIVE:
            name = _NOT_ADDITIVE[photometric]
            raise MalformedInputError(f"'{path}' should be gray, RGB or channels, but is {name}; convert it first.")
        metadata, record = _tag_metadata(page, has_unit_elsewhere=bool(imagej)), shaped.get(records.KEYWORD)
        if imagej:
            metadata, record = _with_imagej(imagej, metadata), records.take_line(imagej.get("Info"))
        elif ome is not None:
            metadata, record, size_notes = tiff_ome.read_fields(ome, index, metadata)
            n_samples, n_described = math.prod(series.shape), tiff_ome.n_samples_described(ome)[index]
            if n_described != n_samples:
                raise ValueError(f"its OME description promises {n_described} samples, but it holds {n_samples}")
            notes += size_notes
        else:
            metadata = _with_description(page.description, shaped, metadata)
        orientation = page.tags.valueof(_ORIENTATION, default=1)
        image = StoredImage(
            samples=zeros_of(series.shape, series.dtype.newbyteorder("=")),
            axes=series.axes,
            metadata=metadata,
            record=record if isinstance(record, dict) else None,
            alpha=_alpha(page) if "S" in series.axes else None,
            orientation=orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1,
            notes=notes,
        )
        yield image, series


def _tag_metadata(page: Any, *, has_unit_elsewhere: bool) -> Metadata:  # noqa: ANN401
    """Read the metadata in the tags of a page."""
    tags = page.tags
    texts = {code: str(tags.valueof(code)) for code in EXIF_TEXTS if tags.valueof(code)}
    icc_profile = tags.valueof(_ICC_PROFILE)
    unsupported = sorted({tag.name for tag in tags if tag.code not in _UNDERSTOOD})
    return Metadata(
        resolution=_resolution(tags, has_unit_elsewhere=has_unit_elsewhere),
        icc_profile=bytes(icc_profile) if icc_profile else None,
        exif=exif_of_texts(texts) if texts else None,
        native={WHITE_IS_ZERO: True} if tags.valueof(_PHOTOMETRIC, default=1) == _MIN_IS_WHITE else {},
        unsupported=tuple(f"TIFF tag {name}" for name in unsupported),
    )


def _resolution(tags: Any, *, has_unit_elsewhere: bool) -> Resolution | None:  # noqa: ANN401
    x, y = tags.valueof(_X_RESOLUTION), tags.valueof(_Y_RESOLUTION)
    unit = {2: "inch", 3: "centimeter"}.get(tags.valueof(_RESOLUTION_UNIT, default=2), "")
    # Writers that know no resolution put 1/1 without a unit.
    are_fractions = all(isinstance(value, tuple) and len(value) == 2 and all(value) for value in (x, y))
    if not are_fractions or (not unit and x == y == (1, 1) and not has_unit_elsewhere):
        return None
    across, down = Fraction(*map(int, x)), Fraction(*map(int, y))
    return Resolution(across, down, unit) if min(across, down) > 0 else None


def _with_description(description: str, shaped: dict[str, Any], metadata: Metadata) -> Metadata:
    """Add the description of a plain file, a text or JSON."""
    native, resolution = dict(metadata.native), metadata.resolution
    if description and not (shaped and description.startswith(_SHAPED_STARTS)):
        native[DESCRIPTION] = description
    distance = shaped.get(PLANE_DISTANCE)
    if resolution and resolution.unit and isinstance(distance, float) and 0 < distance < 1e30:
        resolution = replace(resolution.per("µm"), plane_distance=Fraction(str(distance))).per(resolution.unit)
    names = shaped.get(CHANNEL_NAMES)
    channel_names = tuple(str(name) for name in names) if isinstance(names, list) else ()
    return replace(metadata, resolution=resolution, channel_names=channel_names, native=native)


def _with_imagej(fields: dict[str, Any], metadata: Metadata) -> Metadata:
    """Add ImageJ's fields, without the line of a record."""
    native = {IMAGEJ + name: fields[name] for name in fields if name not in (*_IMAGEJ_COUNTS, *_IMAGEJ_CHANNELS)}
    if records.take_line(fields.get("Info")) is not None:
        native[IMAGEJ + "Info"] = records.drop_line(fields["Info"])
    resolution, unit = metadata.resolution, _IMAGEJ_UNITS.get(str(fields.get("unit", "")), "")
    if resolution and unit:
        spacing = fields.get("spacing")
        is_known = isinstance(spacing, int | float) and 0 < spacing < float("inf")
        distance = Fraction(str(float(spacing))) if is_known and spacing else None
        resolution = replace(resolution, unit=unit, plane_distance=distance)
    return replace(
        metadata,
        resolution=resolution,
        native=metadata.native | native,
        native_of_channels={IMAGEJ + name: fields[name] for name in _IMAGEJ_CHANNELS if name in fields},
        flavor="imagej",
    )


def _alpha(page: Any) -> str | None:  # noqa: ANN401
    extra = page.tags.valueof(_EXTRA_SAMPLES)
    kinds = extra if isinstance(extra, tuple) else (extra,)
    return {1: "associated", 2: "unassociated"}.get(kinds[0]) if len(kinds) == 1 else None
