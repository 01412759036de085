"""Writing TIFF: plain with the axes in JSON, ImageJ's kind, or OME's."""

from __future__ import annotations

import zlib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from deconv_cli.io import exif, records
from deconv_cli.io.codec import Array
from deconv_cli.io.codecs import tiff_imagej, tiff_ome
from deconv_cli.io.codecs.tiff_library import rewrite_description, write_array, write_empty
from deconv_cli.io.codecs.tiff_reader import CHANNEL_NAMES, DESCRIPTION, PLANE_DISTANCE, WHITE_IS_ZERO
from deconv_cli.io.stored_image import Metadata, StoredImage

_EXTRA_SAMPLE = {"associated": 1, "unassociated": 2}
_ASCII = 2
_LEVEL_OF_FRACTIONS = 1
"""Of zlib: the usual level takes three fifths more time, and makes restored pictures a third of a percent smaller."""
_N_TRIED_BYTES, _WORTH_WHILE = 16384, 0.8
"""Fractions are compressed if this share, or less, is left: restored and blurred pictures lie between 0.85 and 0.94."""
_TAG_UNITS = ("inch", "centimeter")
"""The units that a resolution in tags can have."""
_MAX_RATIONAL = 2**32
_SIGNIFICANT_BITS = f"{tiff_ome.PREFIX}{tiff_ome.SIGNIFICANT_BITS}"
_IN_ANY_KIND = {WHITE_IS_ZERO}
_AS_RESOLUTION = {f"{tiff_imagej.PREFIX}{name}" for name in ("unit", "spacing")}


def choose_kind(image: StoredImage, *, wants_ome: bool) -> str:
    """Choose `ome`, `imagej` or an empty text for a plain file.

    Args:
        image: what is to be written, with the flavor of its source.
        wants_ome: the name of the file asks for OME.
    """
    if wants_ome:
        return "ome"
    flavor = image.metadata.flavor
    fits = {"imagej": tiff_imagej.fits, "ome": tiff_ome.fits}
    return flavor if flavor in fits and fits[flavor](image) else ""


def carry(metadata: Metadata, n_bits: int) -> tuple[Metadata, list[str]]:
    """Choose the metadata that a file of the kind `metadata.flavor` and `n_bits` a sample has room for.

    Returns:
        The metadata, and the names of the rest.
    """
    prefix = {"ome": tiff_ome.PREFIX, "imagej": tiff_imagej.PREFIX, "": DESCRIPTION}[metadata.flavor]

    def split(fields: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        kept = {name: value for name, value in fields.items() if name.startswith(prefix) or name in _IN_ANY_KIND}
        is_lost = set(fields) - set(kept) - (_AS_RESOLUTION if metadata.resolution else set())
        return kept, [name for name in fields if name in is_lost]

    native, lost = split(metadata.native)
    significant = native.get(_SIGNIFICANT_BITS, "")
    if significant and not (significant.isdecimal() and int(significant) <= n_bits):
        native, lost = {name: native[name] for name in native if name != _SIGNIFICANT_BITS}, [*lost, _SIGNIFICANT_BITS]
    native_of_channels, lost_of_channels = split(metadata.native_of_channels)
    dropped = exif.describe_other_tags(metadata.exif) if metadata.exif else ""
    lost += [dropped] if dropped else []
    return replace(metadata, native=native, native_of_channels=native_of_channels), lost + lost_of_channels


def write_tiff(path: Path, image: StoredImage) -> None:
    """Write a file of the kind `image.metadata.flavor`, with its record."""
    flavor = image.metadata.flavor
    options = _options(image)
    samples = np.ascontiguousarray(image.samples)
    are_fractions = np.issubdtype(image.dtype, np.floating)
    # ImageJ maps its stacks straight from the disk, which only uncompressed samples allow.
    if flavor != "imagej" and not (are_fractions and _are_noise(samples)):
        options["compression"] = "zlib"
        if are_fractions:
            options["compressionargs"] = {"level": _LEVEL_OF_FRACTIONS}
    write_array(path, samples, flavor or "shaped", options)
    _add_instruments(path, image.metadata)


def _are_noise(samples: Array) -> bool:
    """Tell by a piece of their middle whether samples hardly become smaller, as the last digits of fractions do not."""
    encoded = samples.reshape(-1).view(np.uint8)
    start = max(0, len(encoded) - _N_TRIED_BYTES) // 2 // samples.itemsize * samples.itemsize
    piece = encoded[start : start + _N_TRIED_BYTES].tobytes()
    return len(zlib.compress(piece, _LEVEL_OF_FRACTIONS)) > _WORTH_WHILE * len(piece)


def write_empty_tiff(path: Path, image: StoredImage, tile: tuple[int, int]) -> None:
    """Write the headers of an uncompressed plain or OME file in tiles, and make it as long as it will be."""
    write_empty(path, image.shape, image.dtype, image.metadata.flavor or "shaped", _options(image) | {"tile": tile})
    _add_instruments(path, image.metadata)


def write_record(path: Path, metadata: Metadata, record: dict[str, Any]) -> None:
    """Put the record of a run into a plain or OME file, in the place of the one that it has."""
    with_record = tiff_ome.with_record if metadata.flavor == "ome" else _with_record
    rewrite_description(path, lambda text: with_record(text, record))


def _with_record(text: str, record: dict[str, Any]) -> str:
    """Exchange the record in a description in JSON; any other text stays."""
    fields = records.decode_record(text)
    return text if fields is None else records.encode_record(fields | {records.KEYWORD: record})


def _add_instruments(path: Path, metadata: Metadata) -> None:
    if metadata.flavor == "ome":
        rewrite_description(path, lambda xml: tiff_ome.with_instruments(xml, metadata))


def _options(image: StoredImage) -> dict[str, Any]:
    """Give the arguments of the library by which it writes all but the samples."""
    metadata = image.metadata
    record = image.record or {}
    options: dict[str, Any] = {}
    if metadata.flavor == "imagej":
        fields = tiff_imagej.fields_to_write(metadata, records.encode_record(record))
    elif metadata.flavor == "ome":
        fields = tiff_ome.fields_to_write(metadata, records.encode_record(record))
    else:
        fields = _plain_fields(metadata) | {records.KEYWORD: record}
        options["description"] = metadata.native.get(DESCRIPTION, "").encode() or None
    return options | {
        **_sample_options(image),
        **_resolution_options(metadata),
        "metadata": {"axes": image.axes, **fields},
        "iccprofile": metadata.icc_profile,
        "extratags": [(code, _ASCII, 0, text.encode(), True) for code, text in exif.read_texts(metadata.exif).items()],
    }


def _plain_fields(metadata: Metadata) -> dict[str, Any]:
    """Give what the JSON description of a plain file holds besides the axes."""
    distance = tiff_ome.size_fields(metadata.resolution).get(PLANE_DISTANCE)
    fields = {CHANNEL_NAMES: list(metadata.channel_names), PLANE_DISTANCE: distance}
    return {name: value for name, value in fields.items() if value}


def _sample_options(image: StoredImage) -> dict[str, Any]:
    n_samples = image.shape[image.axes.index("S")] if "S" in image.axes else 1
    n_colors = n_samples - int(image.alpha is not None) if "S" in image.axes else 0
    # Unless it is given, tifffile takes any three planes for colors.
    is_color = n_colors in (3, 4)
    gray = "miniswhite" if WHITE_IS_ZERO in image.metadata.native else "minisblack"
    options: dict[str, Any] = {"photometric": "rgb" if is_color else gray}
    if n_samples > 1:
        options["planarconfig"] = "contig" if image.axes.endswith("S") else "separate"
        extra = [0] * (n_samples - (3 if is_color else 1))
        if image.alpha is not None:
            extra[-1] = _EXTRA_SAMPLE[image.alpha]
        if extra:
            options["extrasamples"] = extra
    return options


def _resolution_options(metadata: Metadata) -> dict[str, Any]:
    known = metadata.resolution
    if known is None:
        return {}
    # ImageJ's tags count pixels per unit of its description; all others know inches and centimeters.
    if known.unit not in _TAG_UNITS and metadata.flavor != "imagej":
        known = known.per("centimeter")
    return {
        "resolution": (_rational(known.x), _rational(known.y)),
        "resolutionunit": known.unit if known.unit in _TAG_UNITS else "none",
    }


def _rational(value: Fraction) -> tuple[int, int] | float:
    fits = max(value.numerator, value.denominator) < _MAX_RATIONAL
    return (value.numerator, value.denominator) if fits else float(value)
