"""FITS, as telescopes write it: images and cubes with their headers (FITS Standard 4.0, IAU, 2018)."""

from __future__ import annotations

import gzip
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.io import limits, records
from deconv_cli.io.codec import Array, Codec, WriteRequest, from_images
from deconv_cli.io.stored_image import Metadata, StoredImage
from deconv_cli.thread_warnings import warnings_here

_GZIP = b"\x1f\x8b"
_HEADER, _COORDINATES = "FITS header", "world coordinates (the frame has another size)"
_OF_STORAGE = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|GROUPS|BSCALE|BZERO|BLANK|CHECKSUM|DATASUM|DATAMIN|DATAMAX"
    r"|EXTNAME|EXTVER|INHERIT|NEXTEND|DECONV|END"
)
"""Cards that describe how the old samples were stored; the writer makes its own."""
_OF_COORDINATES = re.compile(r"WCSAXES|(CRPIX|CRVAL|CTYPE|CUNIT|CDELT|CROTA)\d+\w?|(CD|PC|PV)\d+_\d+\w?|[AB]P?_\w+")


class Fits(Codec):
    """The first image of a file, or the one of `series`; the array stays as it is, its first row the lowest in the sky.

    Files that gzip or fpack compressed are read and written too, without any loss.
    """

    name = "FITS"
    suffixes = (".fits", ".fit", ".fts", ".fits.gz", ".fits.fz")
    magic = (b"SIMPLE  =", _GZIP)
    dtypes = ("uint8", "uint16", "float32", "float64")
    record_inside = True
    selects = "series"

    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read an image with its header; whole numbers with BSCALE and BZERO are scaled, and blank ones become NaN."""
        fits = _imported(path)
        with path.open("rb") as raw, warnings_here("ignore"):  # headers often depart from the standard a little
            is_gzip = raw.read(2) == _GZIP
            raw.seek(0)
            stream = gzip.GzipFile(fileobj=raw) if is_gzip else raw
            with fits.open(stream, memmap=False, uint=True, output_verify="ignore") as units:
                images = {n: unit for n, unit in enumerate(units) if unit.is_image and unit.shape and all(unit.shape)}
                number = int(member) if member is not None else next(iter(images), 0)
                if number not in images:
                    held = ", ".join(map(str, images)) or "none"
                    raise MalformedInputError(
                        f"'{path}' should hold an image in HDU {number}, but the HDUs with images are: {held}."
                    )
                chosen, others = images[number], [_name(n, unit) for n, unit in enumerate(units) if n != number]
                n_bytes = limits.array_bytes(chosen.shape, abs(chosen.header["BITPIX"]) // 8)
                limits.check_expansion(path, n_bytes, path.stat().st_size)
                samples, header = np.asarray(chosen.data), chosen.header.copy()
                header.extend(units[0].header if number else (), unique=True)
        record = records.decode_record(header.get(records.KEYWORD))
        kept = fits.Header([card for card in header.cards if not _OF_STORAGE.fullmatch(card.keyword)])
        is_alone = not others or (number == 1 == len(others) and not units[0].shape)
        note = f"the image of HDU {_name(number, chosen)} was read; left out: {', '.join(others)}"
        return StoredImage(
            samples.astype(samples.dtype.newbyteorder("="), copy=False),
            "Q" * (samples.ndim - 2) + "YX"[-samples.ndim :],
            Metadata(native={_HEADER: kept.tostring(sep="\n", endcard=False)} if kept else {}),
            record,
            notes=() if is_alone else (note,),
        )

    def check(self, request: WriteRequest) -> None:
        """Refuse to write without the package."""
        _imported(request.path)

    def arrange(self, request: WriteRequest, samples: Array, alpha: Array | None) -> StoredImage:
        """Put the channels before the axes of space."""
        layout = request.layout_of_result(samples.shape[1], samples.shape[2:])
        layout = layout.ordered(f"CS{layout.space}")
        return StoredImage(from_images(layout, samples), layout.axes)

    def record_to_keep(self, record: dict[str, Any]) -> dict[str, Any]:
        """Choose what may be passed on with an image: what was done, and by which kernel."""
        return records.short_record(record)

    def carry(self, request: WriteRequest, image: StoredImage) -> tuple[Metadata, list[str]]:
        """Choose the metadata: the header, but for the world coordinates of a frame of another size."""
        kept, lost = super().carry(request, image)
        before, after = (
            dict(zip(a.axes, n, strict=True)) for a, n in ((request.layout, request.layout.sizes), (image, image.shape))
        )
        lines = kept.native.get(_HEADER, "").split("\n")
        others = [line for line in lines if not _OF_COORDINATES.match(line)]
        if len(others) < len(lines) and any(before[a] != after[a] for a in request.layout.space):
            kept, lost = replace(kept, native={_HEADER: "\n".join(others)}), [*lost, _COORDINATES]
        return replace(kept, flavor=request.path.suffix.lower()), lost

    def write(self, path: Path, image: StoredImage) -> None:
        """Write one image with its header, and the record as a long text."""
        fits = _imported(path)
        samples, packed = np.ascontiguousarray(image.samples), io.BytesIO()
        header = fits.Header.fromstring(image.metadata.native.get(_HEADER, ""), sep="\n")
        if image.record:
            header[records.KEYWORD] = records.encode_record(image.record)
        with warnings_here("ignore"):
            if image.metadata.flavor == ".fz":
                unit = fits.CompImageHDU(samples, header, compression_type="GZIP_2", quantize_level=0)
            else:
                unit = fits.PrimaryHDU(samples, header)
            unit.writeto(packed, output_verify="silentfix+ignore")
        content = packed.getvalue()
        path.write_bytes(gzip.compress(content, mtime=0) if image.metadata.flavor == ".gz" else content)


FITS = Fits()


def _name(number: int, unit: Any) -> str:  # noqa: ANN401 (an HDU of astropy)
    return f"{number} ({unit.name})" if unit.name else str(number)


def _imported(path: Path) -> Any:  # noqa: ANN401 (the module)
    """Give the module for FITS.

    Raises:
        UsageError: its package is not installed.
    """
    try:
        from astropy.io import fits
    except ImportError as error:
        raise UsageError(
            f"'{path}' is a FITS file, for which the package astropy is missing: pip install 'deconv-cli[fits]'."
        ) from error
    return fits
