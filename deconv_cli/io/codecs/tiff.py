"""TIFF: plain with the axes in JSON, ImageJ's kind, or OME's."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from deconv_cli.errors import UsageError
from deconv_cli.io import records
from deconv_cli.io.codec import Array, Codec, StoredImage, WriteRequest, from_images, signals_refusal
from deconv_cli.io.codecs import tiff_ome
from deconv_cli.io.codecs.tiff_reader import (
    CHANNEL_NAMES,
    DESCRIPTION,
    IMAGEJ,
    PLANE_DISTANCE,
    WHITE_IS_ZERO,
    read_tiff,
)
from deconv_cli.io.layout import Layout
from deconv_cli.io.metadata import Metadata, exif_texts, other_exif_tags

OME_SUFFIXES = (".ome.tif", ".ome.tiff")
IMAGEJ_AXES = "TZCYXS"
"""Letters of ImageJ's axes, in the order of its files."""

_IMAGEJ_DTYPES = ("uint8", "int16", "uint16", "float32")
_BIG_TIFF_BYTES = 3_900_000_000
_DESCRIPTION_TAG, _ASCII = 270, 2
_EXTRA_SAMPLE = {"associated": 1, "unassociated": 2}
_LEVEL_OF_FRACTIONS = 1
"""Of zlib: the usual level takes three fifths more time, and makes restored pictures a third of a percent smaller."""
_N_TRIED_BYTES, _WORTH_WHILE = 16384, 0.8
"""Fractions are compressed if this share, or less, is left: restored and blurred pictures lie between 0.85 and 0.94."""
_TAG_UNITS = ("inch", "centimeter")
"""The units that a resolution in tags can have."""
_MAX_RATIONAL = 2**32
_AS_RESOLUTION = {f"{IMAGEJ}unit", f"{IMAGEJ}spacing"}


class Tiff(Codec):
    """TIFF files; OME-TIFF where the name ends in .ome.tif, or where the source is one."""

    name = "TIFF"
    suffixes = (".tif", ".tiff")
    magic = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
    record_inside = True
    holds_alpha = True
    carries = frozenset({"resolution", "icc_profile", "exif", "channel_names"})
    selects = "series"

    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read one series."""
        return read_tiff(path, None if member is None else int(member))

    def check(self, request: WriteRequest) -> None:
        """Refuse signals; if the name asks for OME, also sample types and axes that OME does not know."""
        if request.layout.dimensions == 1:
            raise signals_refusal(self, request)
        if not _is_ome_name(request.path):
            return
        if request.dtype not in tiff_ome.WRITABLE_DTYPES:
            raise UsageError(
                f"'{request.path}' cannot hold {request.dtype} samples, since OME has no word for them; choose .tif."
            )
        axes = _renamed(request.layout.with_channels(request.n_channels).squeezed().axes, tiff_ome.AXES)
        if set(axes) - set(tiff_ome.AXES):
            raise UsageError(
                f"'{request.path}' cannot hold axes {request.layout.axes}, since OME knows T and Z beside channels; "
                "choose .tif."
            )

    def order_axes(
        self, request: WriteRequest, layout: Layout, keep: str = "YX"
    ) -> tuple[Layout, str, tuple[str, ...]]:
        """Keep the axes of the source that are longer than one, and those of `keep`, with the plane at the end."""
        layout = layout.squeezed(keep=keep).planes_last()
        if request.flavor == "imagej" and not _is_ome_name(request.path):
            layout = layout.ordered(IMAGEJ_AXES)
        is_free = not _is_ome_name(request.path) and request.flavor not in ("ome", "imagej")
        axes = layout.axes if is_free else _renamed(layout.axes, tiff_ome.AXES)
        new = [letter for letter in axes if letter not in request.layout.axes + "C"]
        return layout, axes, tuple(f"a batch axis was named {letter}" for letter in new)

    def arrange(self, request: WriteRequest, samples: Array, alpha: Array | None) -> StoredImage:
        """Order the samples, with alpha behind the colors."""
        if alpha is None:
            return super().arrange(request, samples, alpha)
        layout = request.layout_of_result(samples.shape[1], samples.shape[2:])
        layout, axes, notes = self.order_axes(request, layout, keep="YXS")
        parts = [from_images(layout, samples), from_images(layout.resized(S=1), alpha)]
        return StoredImage(np.concatenate(parts, axis=layout.axes.index("S")), axes, notes=notes)

    def alpha_refusal(self, request: WriteRequest, alpha: Array) -> str | None:
        """Explain why the alpha channel cannot be written; `None` if it can."""
        return None if request.same_channels else "the channels are no longer colors"

    def carry(self, request: WriteRequest, image: StoredImage) -> tuple[Metadata, list[str]]:
        """Choose the metadata that the kind of TIFF has room for; `flavor` becomes that kind."""
        kept, lost = super().carry(request, image)
        kind = "ome" if _is_ome_name(request.path) else _kind_like_source(image)
        prefix = {"ome": tiff_ome.PREFIX, "imagej": IMAGEJ, "": DESCRIPTION}[kind]
        of_resolution = _AS_RESOLUTION if kept.resolution else set()
        room_for = {WHITE_IS_ZERO, *(n for n in (*kept.native, *kept.native_of_channels) if n.startswith(prefix))}
        bits = kept.native.get(tiff_ome.SIGNIFICANT_BITS, "")
        if bits and not (bits.isdecimal() and int(bits) <= 8 * np.dtype(image.dtype).itemsize):
            room_for.discard(tiff_ome.SIGNIFICANT_BITS)
        lost += [name for name in kept.native if name not in room_for | of_resolution]
        other_tags = other_exif_tags(kept.exif) if kept.exif else ""
        lost += [other_tags] if other_tags else []
        lost += [name for name in kept.native_of_channels if name not in room_for]
        native = {name: value for name, value in kept.native.items() if name in room_for}
        of_channels = {name: value for name, value in kept.native_of_channels.items() if name in room_for}
        return replace(kept, native=native, native_of_channels=of_channels, flavor=kind), lost

    def write(self, path: Path, image: StoredImage) -> None:
        """Write a file of the kind that `carry` chose, with its record."""
        samples, options = np.ascontiguousarray(image.samples), _options(image)
        are_fractions = np.issubdtype(image.dtype, np.floating)
        # ImageJ maps its stacks straight from the disk, which only uncompressed samples allow.
        if image.metadata.flavor != "imagej" and not (are_fractions and _are_noise(samples)):
            options["compression"] = "zlib"
            if are_fractions:
                options["compressionargs"] = {"level": _LEVEL_OF_FRACTIONS}
        is_big = image.metadata.flavor != "imagej" and samples.nbytes > _BIG_TIFF_BYTES
        _write(path, image, samples, options | {"bigtiff": is_big})


TIFF = Tiff()


def write_empty_tiff(path: Path, image: StoredImage, tile: tuple[int, int]) -> None:
    """Write the headers of an uncompressed plain or OME file in tiles, and make the file as long as it will be."""
    size = {"shape": image.shape, "dtype": image.dtype, "bigtiff": True, "tile": tile}
    _write(path, image, None, _options(image) | size)


def write_record(path: Path, metadata: Metadata, record: dict[str, Any]) -> None:
    """Replace the record of a run in a plain or OME file."""
    with_record = tiff_ome.with_record if metadata.flavor == "ome" else _with_record
    _rewrite_description(path, lambda text: with_record(text, record))


def _is_ome_name(path: Path) -> bool:
    return path.name.lower().endswith(OME_SUFFIXES)


def _renamed(axes: str, allowed: str) -> str:
    """Rename batch axes to T or Z where only certain letters are allowed, as far as these two reach."""
    free = [letter for letter in "TZ" if letter not in axes]
    return "".join(free.pop(0) if letter not in allowed and free else letter for letter in axes)


def _kind_like_source(image: StoredImage) -> str:
    """Keep the kind of the source if it can hold the samples and axes; else choose a plain file."""
    flavor, axes = image.metadata.flavor, image.axes
    if flavor == "ome" and image.dtype in tiff_ome.WRITABLE_DTYPES and set(axes) <= set(tiff_ome.AXES):
        return flavor
    colors_fit = "S" not in axes or (image.dtype == "uint8" and image.alpha is None)
    in_order = [letter for letter in IMAGEJ_AXES if letter in axes] == list(axes)
    is_small = image.samples.nbytes < _BIG_TIFF_BYTES  # the offsets have 32 bits
    fits = image.dtype in _IMAGEJ_DTYPES and in_order and colors_fit and is_small
    return flavor if flavor == "imagej" and fits else ""


def _are_noise(samples: Array) -> bool:
    """Check on a piece from the middle whether samples hardly compress, as the last digits of fractions do not."""
    encoded = samples.reshape(-1).view(np.uint8)
    start = max(0, len(encoded) - _N_TRIED_BYTES) // 2 // samples.itemsize * samples.itemsize
    piece = encoded[start : start + _N_TRIED_BYTES].tobytes()
    return len(zlib.compress(piece, _LEVEL_OF_FRACTIONS)) > _WORTH_WHILE * len(piece)


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
        native = metadata.native | metadata.native_of_channels
        fields = {name.removeprefix(IMAGEJ): value for name, value in native.items() if name.startswith(IMAGEJ)}
        fields["Info"] = records.put_line(str(fields.get("Info", "")), records.encode_record(record))
    elif metadata.flavor == "ome":
        fields = tiff_ome.fields_to_write(metadata, records.encode_record(record))
    else:
        distance = tiff_ome.size_fields(metadata.resolution).get(PLANE_DISTANCE)
        known = {CHANNEL_NAMES: list(metadata.channel_names), PLANE_DISTANCE: distance}
        fields = {name: value for name, value in known.items() if value} | {records.KEYWORD: record}
        options["description"] = metadata.native.get(DESCRIPTION, "").encode() or None
    return options | {
        **_sample_options(image),
        **_resolution_options(metadata),
        "metadata": {"axes": image.axes, **fields},
        "iccprofile": metadata.icc_profile,
        "extratags": [(code, _ASCII, 0, text.encode(), True) for code, text in exif_texts(metadata.exif).items()],
    }


def _sample_options(image: StoredImage) -> dict[str, Any]:
    n_samples = image.shape[image.axes.index("S")] if "S" in image.axes else 1
    n_colors = n_samples - int(image.alpha is not None) if "S" in image.axes else 0
    # By default tifffile writes any three planes as colors.
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
