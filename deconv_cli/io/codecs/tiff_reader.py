"""What a TIFF file means: its channels, its transparency, its metadata."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from deconv_cli.errors import MalformedInputError
from deconv_cli.io import exif, records
from deconv_cli.io.codecs import tiff_imagej, tiff_ome
from deconv_cli.io.codecs.tiff_library import TiffSeries, read_series
from deconv_cli.io.stored_image import Metadata, Resolution, StoredImage

DESCRIPTION, WHITE_IS_ZERO = "TIFF description", "white-is-zero display"
"""Names among `Metadata.native`."""
CHANNEL_NAMES, PLANE_DISTANCE = "channel_names", "PhysicalSizeZ"
"""Members of the JSON description of plain files; the distance is in micrometers."""

_PHOTOMETRIC, _ORIENTATION, _EXTRA_SAMPLES = 262, 274, 338
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_COLOR_MAP, _ICC_PROFILE = 320, 34675
_READ = {
    *(_PHOTOMETRIC, _ORIENTATION, _EXTRA_SAMPLES, _X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT),
    *(_COLOR_MAP, _ICC_PROFILE, *exif.TEXT_TAGS),
}
_MIN_IS_WHITE, _PALETTE, _SEPARATED, _CIELAB = 0, 3, 5, 8

_SHAPED_STARTS = ('{"shape":', "shape=(")
"""Of descriptions that tifffile itself wrote."""

_STRUCTURE = {
    *(254, 255, 256, 257, 258, 259, 263, 266, 269, 270, 273, 277, 278, 279, 280, 281, 284, 292, 293, 297, 305),
    *(317, 322, 323, 324, 325, 330, 339, 340, 341, 347, 529, 530, 531, 532, 32996, 32997, 50838, 50839),
}
"""Tags that say how the samples are stored, or that are written anew."""


def read_tiff(path: Path, *, series: int | None) -> StoredImage:
    """Read one series of a TIFF file.

    Raises:
        UsageError: no series of this number.
        InputRefusedError: damaged, too large, or in a color model that is not understood.
    """
    found = read_series(path, series, frozenset(_READ))
    metadata, record = _metadata(path, found)
    image = StoredImage(
        samples=found.samples,
        axes=found.axes,
        metadata=metadata,
        record=record,
        alpha=_alpha(found),
        orientation=_whole(found, _ORIENTATION, 1) if 1 <= _whole(found, _ORIENTATION, 1) <= 8 else 1,
        notes=_batch_notes(found),
    )
    return _expanded(path, found, image)


def _whole(found: TiffSeries, code: int, default: int) -> int:
    value = found.tags.get(code)
    return int(value) if isinstance(value, int) else default


def _metadata(path: Path, found: TiffSeries) -> tuple[Metadata, dict[str, Any] | None]:
    """Gather the metadata, and the record of an earlier run."""
    texts = {code: str(found.tags[code]) for code in exif.TEXT_TAGS if found.tags.get(code)}
    icc_profile = found.tags.get(_ICC_PROFILE)
    unsupported = {name for code, name in found.tag_names.items() if code not in _STRUCTURE | _READ}
    metadata = Metadata(
        resolution=_resolution(found),
        icc_profile=bytes(icc_profile) if icc_profile else None,
        exif=exif.block_of_texts(texts) if texts else None,
        native={WHITE_IS_ZERO: True} if _whole(found, _PHOTOMETRIC, 1) == _MIN_IS_WHITE else {},
        unsupported=tuple(f"TIFF tag {name}" for name in sorted(unsupported)),
    )
    if found.imagej:
        return tiff_imagej.read_fields(found.imagej, metadata)
    if found.ome is not None:
        _check_size(path, found, tiff_ome.n_samples_described(found.ome)[found.index :])
        return tiff_ome.read_fields(path, found.ome, found.index, metadata)
    record = found.shaped.get(records.KEYWORD)
    return _with_description(found, metadata), record if isinstance(record, dict) else None


def _check_size(path: Path, found: TiffSeries, described: list[int]) -> None:
    if described and described[0] != found.samples.size:
        raise MalformedInputError(
            f"'{path}' should hold {described[0]} samples as its OME description says, but holds "
            f"{found.samples.size}; it is cut short or damaged."
        )


def _with_description(found: TiffSeries, metadata: Metadata) -> Metadata:
    """Add what the description of a plain file says, as a text or in JSON."""
    names = found.shaped.get(CHANNEL_NAMES)
    distance = found.shaped.get(PLANE_DISTANCE)
    native = dict(metadata.native)
    if not (found.shaped and found.description.startswith(_SHAPED_STARTS)) and found.description:
        native[DESCRIPTION] = found.description
    resolution = metadata.resolution
    if resolution and resolution.unit and isinstance(distance, float) and 0 < distance < 1e30:
        per_micrometer = replace(resolution.per("µm"), plane_distance=Fraction(str(distance)))
        resolution = per_micrometer.per(resolution.unit)
    channel_names = tuple(str(name) for name in names) if isinstance(names, list) else ()
    return replace(metadata, resolution=resolution, channel_names=channel_names, native=native)


def _resolution(found: TiffSeries) -> Resolution | None:
    x, y = found.tags.get(_X_RESOLUTION), found.tags.get(_Y_RESOLUTION)
    pairs = [value for value in (x, y) if isinstance(value, tuple) and len(value) == 2 and all(value)]
    unit = {2: "in", 3: "cm"}.get(_whole(found, _RESOLUTION_UNIT, 2), "")
    # 1/1 without a unit is what writers put where they know nothing.
    if len(pairs) != 2 or (not unit and x == y == (1, 1) and not found.imagej):
        return None
    across, down = (Fraction(int(numerator), int(denominator)) for numerator, denominator in pairs)
    return Resolution(across, down, unit) if min(across, down) > 0 else None


def _alpha(found: TiffSeries) -> str | None:
    extra = found.tags.get(_EXTRA_SAMPLES)
    kinds = tuple(int(kind) for kind in (extra if isinstance(extra, tuple) else () if extra is None else (extra,)))
    if "S" not in found.axes or len(kinds) != 1:
        return None
    return {1: "associated", 2: "unassociated"}.get(kinds[0])


def _batch_notes(found: TiffSeries) -> tuple[str, ...]:
    batch = "".join(letter for letter in found.axes if letter not in "CSYX")
    n_planes = int(np.prod([n for a, n in zip(found.axes, found.samples.shape, strict=True) if a in batch]))
    if n_planes == 1:
        return ()
    hint = '; if they are the channels of one image, say so with axes="CYX"' if batch in ("I", "Q") else ""
    return (f"{n_planes} planes (axes {batch}) are worked on one by one{hint}",)


def _expanded(path: Path, found: TiffSeries, image: StoredImage) -> StoredImage:
    """Refuse color models that are not additive, and turn palette indices into colors."""
    photometric = _whole(found, _PHOTOMETRIC, 1)
    if photometric in (_SEPARATED, _CIELAB):
        name = "CMYK" if photometric == _SEPARATED else "CIELAB"
        raise MalformedInputError(f"'{path}' should be gray, RGB or plain channels, but is {name}; convert it first.")
    if photometric != _PALETTE or "S" in image.axes:
        return image
    if image.metadata.flavor:
        # Microscopists color gray values for display; the indices are the measurement.
        return replace(image, notes=(*image.notes, "the color table is for display only and was not applied"))
    samples = _palette_colors(path, np.asarray(image.samples), found.tags.get(_COLOR_MAP))
    return replace(
        image, samples=samples, axes=image.axes + "S", notes=(*image.notes, "the palette was expanded to colors")
    )


def _palette_colors(path: Path, indices: np.ndarray[Any, Any], color_map: Any) -> np.ndarray[Any, Any]:  # noqa: ANN401
    """Look up the color of each index; the table holds all reds, then all greens, then all blues, of 16 bits."""
    table = np.asarray(() if color_map is None else color_map, dtype=np.uint16).reshape(-1)
    n_colors, largest = table.size // 3, int(indices.max(initial=0))
    if table.size % 3 or indices.dtype.kind not in "ui" or largest >= n_colors:
        raise MalformedInputError(
            f"'{path}' should have a palette with a color for every index, but it has {n_colors} colors and indices "
            f"up to {largest}; export it again as gray or RGB."
        )
    is_eight_bit = not (table % 257).any()
    colors = (table // 257).astype(np.uint8) if is_eight_bit else table
    return np.take(colors.reshape(3, n_colors).T, indices.astype(np.intp), axis=0)
