"""The only door to tifffile: it opens both generations of it, before and after 2026.5.2.

NumPy arrays and plain values come out of here; nothing above needs to know tifffile.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from deconv_cli.errors import MalformedInputError, TooLargeError, UsageError
from deconv_cli.io import limits
from deconv_cli.io.sources import refusing_damage
from deconv_cli.vocabulary import format_memory

KIND_IS_AN_ARGUMENT = "kind" in inspect.signature(tifffile.imwrite).parameters
"""Since tifffile 2026.5.2 `kind=` takes the place of `ome=`, `imagej=` and `shaped=`."""

BIG_TIFF_BYTES = 3_900_000_000
_UNCOMPRESSED = 1


@dataclass(frozen=True, eq=False)
class TiffSeries:
    """One array of a TIFF file with what its first page says."""

    samples: npt.NDArray[np.generic]
    axes: str
    index: int
    tags: dict[int, tuple[str, Any]]
    """Name and value by tag number."""
    description: str
    imagej: dict[str, Any]
    ome_xml: str
    shaped: dict[str, Any]
    """JSON metadata of tifffile's own kind of description."""


def read_series(path: Path, index: int | None) -> TiffSeries:
    """Read one series of a TIFF file, after comparing what its header promises with the file.

    Args:
        path: the file.
        index: which series; None where there is only one.

    Raises:
        UsageError: no series of this number.
        MalformedInputError: damaged, cut short, spread over several files, or several series and no number.
        TooLargeError: larger than the memory allows, or a decompression bomb.
    """
    with refusing_damage(path, "a TIFF file"), _no_log_records(), tifffile.TiffFile(path, _multifile=False) as opened:
        ome_xml = opened.ome_metadata or ""
        _refuse_entities(path, ome_xml)
        all_series = list(opened.series)
        chosen = _choose(path, all_series, index)
        series = all_series[chosen]
        _check_pages(path, series, path.stat().st_size)
        imagej = dict(opened.imagej_metadata or {})
        _check_count(path, series, imagej)
        page = series.keyframe
        shaped = opened.shaped_metadata or ()
        samples = series.asarray(maxworkers=1)
        return TiffSeries(
            samples=samples.astype(samples.dtype.newbyteorder("="), copy=False).reshape(series.shape),
            axes=series.axes,
            index=chosen,
            tags={tag.code: (tag.name, tag.value) for tag in page.tags},
            description=page.description,
            imagej=imagej,
            ome_xml=ome_xml,
            shaped=dict(shaped[chosen]) if chosen < len(shaped) else {},
        )


def write_array(path: Path, array: npt.NDArray[np.generic], kind: str, options: dict[str, Any]) -> None:
    """Write one array.

    Args:
        path: the file, overwritten if it exists.
        array: in the order of the axes that `options["metadata"]` names.
        kind: `imagej`, `ome` or `shaped`.
        options: further arguments of `tifffile.imwrite`.
    """
    chosen: dict[str, Any] = {"kind": kind}
    if not KIND_IS_AN_ARGUMENT:
        chosen = {"imagej": kind == "imagej", "ome": kind == "ome", "shaped": kind == "shaped"}
        chosen = {name: value for name, value in chosen.items() if value or name == "ome"}
    is_big = kind != "imagej" and array.nbytes > BIG_TIFF_BYTES
    tifffile.imwrite(path, array, bigtiff=is_big, software="deconv", **chosen, **options)


@contextmanager
def _no_log_records() -> Iterator[None]:
    """Make tifffile's log records of damage errors: it goes on with fewer pages after them."""

    class Refusing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    found: list[str] = []
    logger = logging.getLogger("tifffile")
    handler, propagated = Refusing(logging.WARNING), logger.propagate
    disabled_below = logging.root.manager.disable
    logger.addHandler(handler)
    logger.propagate = False
    logging.disable(logging.NOTSET)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated
        logging.disable(disabled_below)
    if found:
        raise ValueError(found[0])


def _refuse_entities(path: Path, xml: str) -> None:
    # Entities are the bombs of XML, and OME-XML never needs one.
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise MalformedInputError(f"'{path}' declares XML entities in its OME description, which is not opened.")


def _choose(path: Path, all_series: list[Any], index: int | None) -> int:
    if not all_series:
        raise MalformedInputError(f"'{path}' should hold an image, but holds none.")
    if index is not None and not 0 <= index < len(all_series):
        raise UsageError(f"'{path}' holds series 0 to {len(all_series) - 1}, but --series is {index}.")
    if index is None and len(all_series) > 1:
        listed = ", ".join(f"{i}: {s.axes} {tuple(s.shape)} {s.dtype}" for i, s in enumerate(all_series[:12]))
        raise MalformedInputError(f"'{path}' holds {len(all_series)} series ({listed}); choose one with --series N.")
    return index or 0


def _check_pages(path: Path, series: Any, n_file_bytes: int) -> None:  # noqa: ANN401
    """Compare what the pages promise with the file, before anything is allocated."""
    n_decoded = n_stored = 0
    for page in series.pages:
        if page is None:
            raise MalformedInputError(
                f"'{path}' lacks some of the planes it describes; they may lie in other files of the set."
            )
        n_decoded += _decoded_bytes(page.keyframe)
        for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
            n_stored += size
            if size <= 0 or offset + size > n_file_bytes:
                raise MalformedInputError(
                    f"'{path}' should hold all of its image data, but some lies beyond its end or is missing; "
                    "it is cut short or damaged."
                )
        limits.check_budget(path, n_decoded)
    n_array = int(np.prod([int(n) for n in series.shape], dtype=object)) * series.dtype.itemsize
    limits.check_expansion(path, max(n_array, n_decoded), min(n_stored, n_file_bytes))
    n_readable = max(n_stored, n_file_bytes - (series.dataoffset or n_file_bytes))
    is_raw = series.keyframe.compression == _UNCOMPRESSED
    if is_raw and n_array * min(8, series.keyframe.bitspersample) // 8 > n_readable:
        raise TooLargeError(
            f"'{path}' promises {format_memory(n_array)} of uncompressed samples, more than its "
            f"{format_memory(n_file_bytes)} can hold; it is cut short or damaged."
        )


def _decoded_bytes(page: Any) -> int:  # noqa: ANN401
    """Give the bytes that decoding a page takes, whole tiles counted even where the page is smaller."""
    n_chunks = int(np.prod([int(n) for n in page.chunked], dtype=object))
    n_chunk = int(np.prod([int(n) for n in page.chunks], dtype=object)) * page.dtype.itemsize
    n_page = int(np.prod([int(n) for n in page.shape], dtype=object)) * page.dtype.itemsize
    return int(max(n_page, n_chunks * n_chunk))


def _check_count(path: Path, series: Any, imagej: dict[str, Any]) -> None:  # noqa: ANN401
    n_planes = 1
    for letter, size in zip(series.axes, series.shape, strict=True):
        n_planes *= 1 if letter in "YXS" else int(size)
    n_promised = int(imagej.get("images", n_planes))
    if n_planes != n_promised:
        raise MalformedInputError(
            f"'{path}' should hold {n_promised} planes as its ImageJ description says, but {n_planes} were found."
        )
