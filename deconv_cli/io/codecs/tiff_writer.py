"""Writing TIFF files: tifffile's arguments for samples, metadata and the record, and changes of a description."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from deconv_cli.io import records
from deconv_cli.io.codec import StoredImage
from deconv_cli.io.codecs import tiff_ome
from deconv_cli.io.codecs.tiff_reader import CHANNEL_NAMES, DESCRIPTION, IMAGEJ, PLANE_DISTANCE, WHITE_IS_ZERO
from deconv_cli.io.layout import Array
from deconv_cli.io.metadata import Metadata, exif_texts

BIG_TIFF_BYTES = 3_900_000_000
_DESCRIPTION_TAG, _ASCII = 270, 2
_TAG_UNITS = ("inch", "centimeter")
"""The units that a resolution in tags can have."""
_MAX_RATIONAL = 2**32


def write_tiff(path: Path, image: StoredImage) -> None:
    """Write a file of the kind that `metadata.flavor` names, with its record."""
    samples, options = np.ascontiguousarray(image.samples), _options(image)
    # ImageJ maps its stacks straight from the disk, which only uncompressed samples allow. Fractions hardly shrink.
    if image.metadata.flavor != "imagej" and not np.issubdtype(image.dtype, np.floating):
        options["compression"] = "zlib"
    is_big = image.metadata.flavor != "imagej" and samples.nbytes > BIG_TIFF_BYTES
    _write(path, image, samples, options | {"bigtiff": is_big})


def write_empty_tiff(path: Path, image: StoredImage, tile: tuple[int, int]) -> None:
    """Write the headers of an uncompressed plain or OME file in tiles, and make the file as long as it will be."""
    size = {"shape": image.shape, "dtype": image.dtype, "bigtiff": True, "tile": tile}
    _write(path, image, None, _options(image) | size)


def write_record(path: Path, metadata: Metadata, record: dict[str, Any]) -> None:
    """Replace the record of a run in a plain or OME file."""
    with_record = tiff_ome.with_record if metadata.flavor == "ome" else _with_record
    _rewrite_description(path, lambda text: with_record(text, record))


def _write(path: Path, image: StoredImage, samples: Array | None, options: dict[str, Any]) -> None:
    import tifffile

    kind = image.metadata.flavor or "shaped"
    kinds = {"ome": kind == "ome", "imagej": kind == "imagej", "shaped": kind == "shaped"}
    tifffile.imwrite(path, samples, software="deconv", **kinds, **options)
    if kind == "ome":
        _rewrite_description(path, lambda xml: tiff_ome.with_instruments(xml, image.metadata))


def _rewrite_description(path: Path, change: Callable[[str], str]) -> None:
    """Change the descriptions of the first page; a plain file may have two."""
    import tifffile

    with tifffile.TiffFile(path, mode="r+") as opened:
        tags = opened.pages.first.tags
        for tag in filter(None, (tags.get(_DESCRIPTION_TAG, index=place) for place in range(2))):
            before = str(tag.value)
            if (after := change(before)) != before:
                tag.overwrite(after.encode())


def _with_record(text: str, record: dict[str, Any]) -> str:
    """Exchange the record in a description in JSON; any other text stays."""
    fields = records.decode_record(text)
    return text if fields is None else records.encode_record(fields | {records.KEYWORD: record})


def _options(image: StoredImage) -> dict[str, Any]:
    """List tifffile's arguments for everything but the samples."""
    metadata, record = image.metadata, image.record or {}
    options: dict[str, Any] = {}
    if metadata.flavor == "imagej":
        native = (*metadata.native.items(), *metadata.native_of_channels.items())
        fields = {name.removeprefix(IMAGEJ): value for name, value in native if name.startswith(IMAGEJ)}
        fields["Info"] = records.put_line(str(fields.get("Info", "")), records.encode_record(record))
    elif metadata.flavor == "ome":
        fields = tiff_ome.fields_to_write(metadata, records.encode_record(record))
    else:
        distance = tiff_ome.size_fields(metadata.density).get(PLANE_DISTANCE)
        known = {CHANNEL_NAMES: list(metadata.channel_names), PLANE_DISTANCE: distance}
        fields = {name: value for name, value in known.items() if value} | {records.KEYWORD: record}
        options["description"] = str(metadata.native.get(DESCRIPTION, "")).encode() or None
    return options | {
        **_sample_options(image),
        **_density_options(metadata),
        "metadata": {"axes": image.axes, **fields},
        "iccprofile": metadata.icc_profile,
        "extratags": [(code, _ASCII, 0, text.encode(), True) for code, text in exif_texts(metadata.exif).items()],
    }


def _sample_options(image: StoredImage) -> dict[str, Any]:
    # Samples are the axis beside a plane; in front of others, they are pages.
    has_samples = image.axes.endswith(("S", "SYX"))
    n_samples = image.shape[image.axes.index("S")] if has_samples else 1
    # By default tifffile writes any three planes as colors.
    is_color = has_samples and n_samples in (3, 4)
    gray = "miniswhite" if WHITE_IS_ZERO in image.metadata.native else "minisblack"
    options: dict[str, Any] = {"photometric": "rgb" if is_color else gray}
    if n_samples > 1:
        options["planarconfig"] = "contig" if image.axes.endswith("S") else "separate"
        if extra := [0] * (n_samples - (3 if is_color else 1)):
            options["extrasamples"] = extra
    return options


def _density_options(metadata: Metadata) -> dict[str, Any]:
    known = metadata.density
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
