"""Reading TIFF by tifffile: refusing damaged and hostile files, and the channels and metadata of a series."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element

from deconv_cli.errors import MalformedInputError, TooLargeError, UsageError
from deconv_cli.io import limits, records
from deconv_cli.io.codec import ALPHA_NOTE, PREMULTIPLIED_NOTE, StoredImage, is_opaque, pyramid_notes, zeros_of
from deconv_cli.io.codecs import tiff_ome
from deconv_cli.io.layout import Array, working_bytes
from deconv_cli.io.metadata import EXIF_TEXTS, Metadata, PixelDensity, exif_of_texts
from deconv_cli.vocabulary import format_memory

if TYPE_CHECKING:
    import tifffile

_JPEG = (6, 7, 34892, 33007)
"""Compressions whose segments leave their tables to the page."""
_UNCOMPRESSED = 1


@contextmanager
def opened_tiff(path: Path, *, by_parts: bool = False) -> Iterator[tuple[tifffile.TiffFile, Element | None]]:
    """Open a TIFF file with its parsed OME-XML; raises `InputRefusedError` if its headers do not fit the file."""
    import tifffile

    with _raising_logged_damage(), tifffile.TiffFile(path, _multifile=False) as opened:
        ome = tiff_ome.parse(opened.ome_metadata) if opened.ome_metadata else None
        # Checked first: tifffile makes lists as long as the descriptions say, however short the file is.
        described = [] if ome is None else tiff_ome.n_samples_described(ome)
        described += [limits.array_bytes(shaped.get("shape", ()), 1) for shaped in opened.shaped_metadata or ()]
        for n_samples in described:
            limits.check_expansion(path, n_samples, path.stat().st_size, by_parts=by_parts)
        yield opened, ome


def choose_series(
    path: Path, opened: tifffile.TiffFile, index: int | None, *, by_parts: bool = False
) -> tuple[int, Any]:
    """Choose a series, and compare what its pages promise with the file; return its number and tifffile's series.

    Raises:
        UsageError: no series of this number.
        MalformedInputError: damaged, cut short, spread over several files, or several series and no number.
        TooLargeError: larger than the memory allows, or a decompression bomb.
    """
    all_series = list(opened.series)
    if not all_series:
        raise MalformedInputError(f"'{path}' should hold an image, but holds none.")
    if index is not None and not 0 <= index < len(all_series):
        raise UsageError(f"'{path}' holds series 0 to {len(all_series) - 1}, but series={index} was chosen.")
    if index is None and len(all_series) > 1:
        listed = ", ".join(f"{i}: {s.axes} {tuple(s.shape)} {s.dtype}" for i, s in enumerate(all_series[:12]))
        raise MalformedInputError(f"'{path}' holds {len(all_series)} series ({listed}); choose one with series=N.")
    series = all_series[index or 0]
    _check_pages(path, series, path.stat().st_size, by_parts=by_parts)
    n_planes = math.prod(size for letter, size in zip(series.axes, series.shape, strict=True) if letter not in "YXS")
    n_promised = int((opened.imagej_metadata or {}).get("images", n_planes))
    if n_planes != n_promised:
        raise ValueError(f"its ImageJ description promises {n_promised} planes, but {n_planes} were found")
    return index or 0, series


def segment_decoder(series: Any) -> Callable[[bytes, int, int], Array]:  # noqa: ANN401
    """Make a function that decodes one tile or strip of a series, also after its file is closed.

    The function takes the bytes, the number of the page, and the number of the segment in the page. It returns shape
    (depth, rows, columns, samples); some of these may lie outside the image.
    """
    # Looked up here, since tifffile reads more of the file for these.
    page, decode = series.keyframe, series.keyframe.decode
    is_jpeg = page.compression in _JPEG
    tables = [{"jpegtables": one.jpegtables, "jpegheader": page.jpegheader} for one in series.pages if is_jpeg]

    def decoded(data: bytes, n_page: int, n_segment: int) -> Array:
        with _raising_logged_damage():
            samples, _, _ = decode(data, n_segment, **(tables[n_page] if is_jpeg else {}))
        native: Array = samples.astype(samples.dtype.newbyteorder("="), copy=False)
        return native

    return decoded


_LOG = logging.getLogger("tifffile")
_LOGGED: ContextVar[list[str] | None] = ContextVar("logged", default=None)
"""The damage that tifffile logged while this thread reads a file; `None` outside of reading."""


def _is_enabled_for(level: int) -> bool:
    """Let tifffile log damage to a thread that reads, even if the caller has silenced its logger."""
    return (level >= logging.WARNING and _LOGGED.get() is not None) or logging.Logger.isEnabledFor(_LOG, level)


def _make_record(*arguments: Any, **keywords: Any) -> logging.LogRecord:  # noqa: ANN401 (as logging has them)
    """Stop tifffile at a log record of damage while it reads: it would go on with fewer pages, or for minutes."""
    record, logged = logging.Logger.makeRecord(_LOG, *arguments, **keywords), _LOGGED.get()
    if record.levelno >= logging.WARNING and logged is not None:
        logged.append(record.getMessage())
        raise ValueError(logged[-1])
    return record


_LOG.isEnabledFor, _LOG.makeRecord = _is_enabled_for, _make_record  # type: ignore[method-assign]


@contextmanager
def _raising_logged_damage() -> Iterator[None]:
    """Make tifffile's log records of damage errors, in this thread."""
    logged: list[str] = []
    token = _LOGGED.set(logged)
    try:
        yield
    finally:
        _LOGGED.reset(token)
    # tifffile may have caught the error itself.
    if logged:
        raise ValueError(logged[0])


def _check_pages(path: Path, series: Any, n_file_bytes: int, *, by_parts: bool) -> None:  # noqa: ANN401
    """Compare what the pages promise with the file, before anything is allocated."""
    n_decoded = n_stored = n_segments = 0
    for page in series.pages:
        if page is None:
            raise ValueError("it lacks some of its planes, which may lie in other files of the set")
        # Whole tiles count, even where the page is smaller.
        key = page.keyframe
        n_tiles, n_tile = limits.array_bytes(key.chunked, 1), limits.array_bytes(key.chunks, key.dtype.itemsize)
        n_decoded += max(limits.array_bytes(key.shape, key.dtype.itemsize), n_tiles * n_tile)
        for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
            n_stored += size
            if size <= 0 or offset + size > n_file_bytes:
                raise ValueError("some of its image data lie beyond its end or are missing")
        n_segments += len(page.dataoffsets)
        if not by_parts:
            limits.check_budget(path, n_decoded)
        elif not page.keyframe.is_final:
            # Single rows can be read if samples are stored as they are; else whole strips or tiles are decoded.
            limits.check_budget(path, limits.array_bytes(page.chunks, page.dtype.itemsize))
    n_array, n_bytes = limits.array_bytes(series.shape, series.dtype.itemsize), min(n_stored, n_file_bytes)
    n_decoded = max(working_bytes(series.shape, series.dtype), n_decoded)
    limits.check_expansion(path, n_decoded, n_bytes, n_parts=n_segments, by_parts=by_parts)
    n_readable = max(n_stored, n_file_bytes - (series.dataoffset or n_file_bytes))
    is_raw = series.keyframe.compression == _UNCOMPRESSED
    if is_raw and n_array * min(8, series.keyframe.bitspersample) // 8 > n_readable:
        raise TooLargeError(
            f"'{path}' promises {format_memory(n_array)} of uncompressed samples, more than its "
            f"{format_memory(n_file_bytes)} can hold; the file is cut short or damaged."
        )


DESCRIPTION, WHITE_IS_ZERO, IMAGEJ = "TIFF description", "white-is-zero display", "ImageJ "
"""Names among `Metadata.native`; those of ImageJ's fields begin with `ImageJ `."""
CHANNEL_NAMES, PLANE_DISTANCE = "channel_names", "PhysicalSizeZ"
"""Members of the JSON description of plain files; the distance is in micrometers."""

_PHOTOMETRIC, _ORIENTATION, _EXTRA_SAMPLES = 262, 274, 338
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_ICC_PROFILE, _ASSOCIATED = 34675, (1, (1,))
_ALPHA = (*_ASSOCIATED, 2, (2,))
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
        if ALPHA_NOTE in image.notes:
            place = image.axes.index("S")
            alpha, native = native.take(-1, axis=place), native.take(range(native.shape[place] - 1), axis=place)
            if is_opaque(alpha):
                image = replace(image, notes=tuple(n for n in image.notes if n not in (ALPHA_NOTE, PREMULTIPLIED_NOTE)))
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
        extra = page.tags.valueof(_EXTRA_SAMPLES)
        if "S" in series.axes and extra in _ALPHA:
            notes += (ALPHA_NOTE, PREMULTIPLIED_NOTE) if extra in _ASSOCIATED else (ALPHA_NOTE,)
        orientation = page.tags.valueof(_ORIENTATION, default=1)
        image = StoredImage(
            samples=zeros_of(series.shape, series.dtype.newbyteorder("=")),
            axes=series.axes,
            metadata=metadata,
            record=record if isinstance(record, dict) else None,
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
        density=_density(tags, has_unit_elsewhere=has_unit_elsewhere),
        icc_profile=bytes(icc_profile) if icc_profile else None,
        exif=exif_of_texts(texts) if texts else None,
        native={WHITE_IS_ZERO: True} if tags.valueof(_PHOTOMETRIC, default=1) == _MIN_IS_WHITE else {},
        unsupported=tuple(f"TIFF tag {name}" for name in unsupported),
    )


def _density(tags: Any, *, has_unit_elsewhere: bool) -> PixelDensity | None:  # noqa: ANN401
    x, y = tags.valueof(_X_RESOLUTION), tags.valueof(_Y_RESOLUTION)
    unit = {2: "inch", 3: "centimeter"}.get(tags.valueof(_RESOLUTION_UNIT, default=2), "")
    # Writers that know no resolution put 1/1 without a unit.
    are_fractions = all(isinstance(value, tuple) and len(value) == 2 and all(value) for value in (x, y))
    if not are_fractions or (not unit and x == y == (1, 1) and not has_unit_elsewhere):
        return None
    across, down = Fraction(*map(int, x)), Fraction(*map(int, y))
    return PixelDensity(across, down, unit) if min(across, down) > 0 else None


def _with_description(description: str, shaped: dict[str, Any], metadata: Metadata) -> Metadata:
    """Add the description of a plain file, a text or JSON."""
    native, density = dict(metadata.native), metadata.density
    if description and not (shaped and description.startswith(_SHAPED_STARTS)):
        native[DESCRIPTION] = description
    distance = shaped.get(PLANE_DISTANCE)
    if density and density.unit and isinstance(distance, float) and 0 < distance < 1e30:
        density = replace(density.per("µm"), plane_distance=Fraction(str(distance))).per(density.unit)
    names = shaped.get(CHANNEL_NAMES)
    channel_names = tuple(str(name) for name in names) if isinstance(names, list) else ()
    return replace(metadata, density=density, channel_names=channel_names, native=native)


def _with_imagej(fields: dict[str, Any], metadata: Metadata) -> Metadata:
    """Add ImageJ's fields, without the line of a record."""
    native = {IMAGEJ + name: fields[name] for name in fields if name not in (*_IMAGEJ_COUNTS, *_IMAGEJ_CHANNELS)}
    if records.take_line(fields.get("Info")) is not None:
        native[IMAGEJ + "Info"] = records.drop_line(fields["Info"])
    density, unit = metadata.density, _IMAGEJ_UNITS.get(str(fields.get("unit", "")), "")
    if density and unit:
        spacing = fields.get("spacing")
        is_known = isinstance(spacing, int | float) and 0 < spacing < float("inf")
        distance = Fraction(str(float(spacing))) if is_known and spacing else None
        density = replace(density, unit=unit, plane_distance=distance)
    return replace(
        metadata,
        density=density,
        native={**metadata.native, **native},
        native_of_channels={IMAGEJ + name: fields[name] for name in _IMAGEJ_CHANNELS if name in fields},
        flavor="imagej",
    )
