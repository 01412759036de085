"""Open TIFF files by tifffile, and refuse damaged and hostile ones before anything large is allocated."""

from __future__ import annotations

import logging
import math
import mmap
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element

from deconv_cli.errors import MalformedInputError, TooLargeError, UsageError
from deconv_cli.io import limits
from deconv_cli.io.codecs import tiff_ome
from deconv_cli.io.layout import Array, working_bytes
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

    check_directories(path)
    with _damage_is_an_error(), tifffile.TiffFile(path, _multifile=False) as opened:
        ome = tiff_ome.parse(opened.ome_metadata) if opened.ome_metadata else None
        # tifffile makes lists as long as the descriptions say.
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
        with _damage_is_an_error():
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
def _damage_is_an_error() -> Iterator[None]:
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
            f"{format_memory(n_file_bytes)} can hold; it is cut short or damaged."
        )


_MAX_TAGS = 4096
"""Of one directory; tifffile draws the same line."""
_MAX_READS = 4
"""How often every byte of the file may belong to a directory or to a value of a tag, on average."""
_SUBDIRECTORIES = (330, 34665, 34853, 40965)
"""SubIFDs, Exif, GPS and Interoperability."""
_VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""By data type."""
_CLASSIC, _BIG = ("I", "H", "HHI4s"), ("Q", "Q", "HHQ8s")
"""Formats of an offset, a number of tags, and a tag: its code, data type, count, and value or the offset of it."""


def check_directories(path: Path) -> None:
    """Refuse a file whose directories form a circle, or promise far more than the file holds.

    A few damaged bytes would keep tifffile busy for minutes. Source: TIFF Revision 6.0, Adobe, 1992; BigTIFF,
    https://www.awaresystems.be/imaging/tiff/bigtiff.html.

    Raises:
        ValueError: they do, or one of them lies beyond the end.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        order, is_big = "<" if data[:2] == b"II" else ">", b"+" in data[2:4]
        offset, n_tags, tag = (struct.Struct(order + form) for form in (_BIG if is_big else _CLASSIC))
        waiting, seen = [(offset.unpack_from(data, 8 if is_big else 4)[0], False)], {0}
        n_left = _MAX_READS * len(data)
        while waiting:
            place, is_inner = waiting.pop()
            if (place in seen or place + n_tags.size > len(data)) and (is_inner or place == 0):
                continue
            if place in seen or place + n_tags.size > len(data):
                raise ValueError("its directories come in a circle or lie beyond its end")
            seen.add(place)
            (n,) = n_tags.unpack_from(data, place)
            end = place + n_tags.size + n * tag.size
            if n > _MAX_TAGS or end + offset.size > len(data):
                raise ValueError(f"a directory of {n} tags does not fit into it")
            if not is_inner:
                waiting.append((offset.unpack_from(data, end)[0], False))
            for code, kind, count, value in tag.iter_unpack(data[place + n_tags.size : end]):
                n_value_bytes = count * _VALUE_BYTES.get(kind, 0)
                n_left -= tag.size + n_value_bytes
                if n_left < 0:
                    raise ValueError("its directories promise more than it holds")
                if code in _SUBDIRECTORIES:
                    waiting += [(found, True) for found in _offsets(data, offset, n_value_bytes, value)]


def _offsets(data: mmap.mmap, offset: struct.Struct, n_bytes: int, value: bytes) -> list[int]:
    """Read the offsets in a tag, or at the place that it points to."""
    start = offset.unpack(value)[0]
    stored = value[:n_bytes] if n_bytes <= len(value) else data[start : start + n_bytes]
    whole = stored[: len(stored) // offset.size * offset.size]
    return [number for (number,) in offset.iter_unpack(whole) if number]
