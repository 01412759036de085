"""FITS, as telescopes write it: images and cubes with their headers (FITS Standard 4.0, IAU, 2018)."""

from __future__ import annotations

import gzip
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deconv_cli.errors import MalformedInputError, import_extra, warnings_here
from deconv_cli.io import limits, records
from deconv_cli.io.codec import Codec, StoredImage, WriteRequest
from deconv_cli.io.layout import Layout
from deconv_cli.io.metadata import FITS_HEADER, Metadata

_GZIP = b"\x1f\x8b"
_PARTS_OF_UNIT = 8
"""A unit takes the time of this many parts of other files."""
_LOST_PLACE = "world coordinates (the frame has another size)"
_OF_STORAGE = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|BSCALE|BZERO|BLANK|CHECKSUM|DATASUM|DATAMIN|DATAMAX|EXTNAME"
    r"|EXTVER|INHERIT|NEXTEND|DECONV"
)
"""Keywords that describe how the samples were stored, and hold for no other samples."""
_OF_PLACE = re.compile(r"WCSAXES|(CRPIX|CRVAL|CTYPE|CUNIT|CDELT|CROTA)\d|(CD|PC|PV)\d+_\d|[AB]P?_(\d_\d|ORDER)")


class Fits(Codec):
    """The first image of a file, or the one of `series`; files may be packed by gzip or fpack.

    The rows stay in the order of the file, which counts them from below.
    """

    name = "FITS"
    suffixes = (".fits", ".fit", ".fts", ".fits.gz", ".fits.fz")
    magic = (b"SIMPLE  =", _GZIP)
    dtypes = ("uint8", "uint16", "float32", "float64")
    record_inside = has_short_record = True
    selects = "series"

    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read an image with its header; BSCALE and BZERO are applied, and blank pixels become NaN."""
        fits = _imported(path)
        with path.open("rb") as raw, warnings_here("ignore"):  # many headers depart a little from the standard
            stream: Any = raw
            n_stored, n_unpacked = path.stat().st_size, 0
            if raw.peek(2).startswith(_GZIP):
                stream = gzip.GzipFile(fileobj=raw)
                while piece := stream.read(2**20):  # no header holds the size
                    n_unpacked += len(piece)
                    limits.check_expansion(path, n_unpacked, n_stored)
                stream.seek(0)
            units = fits.open(stream, memmap=False)
            images = {}
            for n, unit in enumerate(units):
                limits.check_expansion(path, 0, n_stored, n_parts=n * _PARTS_OF_UNIT)
                if unit.is_image and unit.shape and all(unit.shape):
                    images[n] = unit
            number = int(member) if member is not None else next(iter(images), 0)
            if number not in images:
                held = f"has images in {', '.join(map(str, images))}" if images else "holds no image"
                raise MalformedInputError(f"'{path}' should hold an image in HDU {number}, but {held}.")
            chosen = images[number]
            n_bytes = limits.array_bytes(chosen.shape, max(abs(chosen.header["BITPIX"]) // 8, 4))
            limits.check_expansion(path, n_bytes, n_stored)
            samples, header = np.asarray(chosen.data), chosen.header.copy()
            if number:
                header.extend(units[0].header, unique=True)
        kept = fits.Header([card for card in header.cards if not _OF_STORAGE.fullmatch(card.keyword)])
        others = [f"{n} {unit.name}".strip() for n, unit in enumerate(units) if n != number and (n or 0 in images)]
        named = f"{number} {chosen.name}".strip()
        note = f"the image of HDU {named} was read, without the other HDUs: {', '.join(others)}"
        return StoredImage(
            samples.astype(samples.dtype.newbyteorder("="), copy=False),
            ("Q" * samples.ndim + "YX")[-samples.ndim :],
            Metadata(native={FITS_HEADER: kept.tostring(sep="\n")} if kept else {}),
            records.decode_record(header.get(records.KEYWORD)),
            notes=(note,) if others else (),
        )

    def check(self, request: WriteRequest) -> None:
        """Refuse the file if the package is missing."""
        _imported(request.path)

    def order_axes(self, request: WriteRequest, layout: Layout) -> tuple[Layout, str, tuple[str, ...]]:
        """Put the channels before the axes of space."""
        layout = layout.ordered(f"CS{layout.space}")
        return layout, layout.axes, ()

    def choose_metadata(self, request: WriteRequest, image: StoredImage) -> tuple[Metadata, list[str]]:
        """Choose the metadata: the header, without world coordinates where the frame has another size."""
        kept, lost = super().choose_metadata(request, image)
        lines = str(kept.native.get(FITS_HEADER, "")).split("\n")
        others = [line for line in lines if not _OF_PLACE.match(line)]
        sizes = dict(zip(image.axes, image.shape, strict=True))
        if others != lines and request.layout.resized_space([sizes[a] for a in request.layout.space]) != request.layout:
            kept, lost = replace(kept, native={FITS_HEADER: "\n".join(others)}), [*lost, _LOST_PLACE]
        return replace(kept, flavor=request.path.suffix.lower()), lost

    def write(self, path: Path, image: StoredImage) -> None:
        """Write one image with its header and the record."""
        fits, packed = _imported(path), io.BytesIO()
        header = fits.Header.fromstring(image.metadata.native.get(FITS_HEADER, ""), sep="\n")
        header[records.KEYWORD] = records.encode_record(image.record or {})
        unit, options = fits.PrimaryHDU, {}
        if image.metadata.flavor == ".fz":
            unit, options = fits.CompImageHDU, {"compression_type": "GZIP_2", "quantize_level": 0}
        with warnings_here("ignore"):
            unit(np.ascontiguousarray(image.samples), header, **options).writeto(
                packed, output_verify="silentfix+ignore"
            )
        content = packed.getvalue()
        path.write_bytes(gzip.compress(content, mtime=0) if image.metadata.flavor == ".gz" else content)


FITS = Fits()


def _imported(path: Path) -> Any:  # noqa: ANN401 (the module)
    """Import the module for FITS; raises `UsageError` if its package is not installed."""
    return import_extra("astropy.io.fits", f"'{path}' is a FITS file, which needs", "fits")
