"""Pictures by Pillow, opened once their size is known: JPEG, BMP, GIF, WebP and AVIF, and what PNG shares with them."""

from __future__ import annotations

import importlib
import io
import mmap
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from deconv_cli.errors import MalformedInputError
from deconv_cli.io import limits, metadata, records
from deconv_cli.io.codec import Codec, PictureCodec, StoredImage, WriteRequest
from deconv_cli.io.layout import Array
from deconv_cli.io.metadata import Metadata, Resolution

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

Picture = TypeVar("Picture", bound="ImageFile")

_BYTES_PER_PIXEL = 3
_STRIP = 2**20
"""Pixels that are converted at a time, since Pillow hands over two copies."""
_NONE = Metadata()
_NEVER_CARRIED = {"XMP": "xmp", "Photoshop": "photoshop"}


@contextmanager
def opened_picture(path: Path, kind: type[Picture]) -> Iterator[Picture]:
    """Open a picture by the class of its format, and decode it once its size has been checked."""
    n_bytes = path.stat().st_size
    limits.check_budget(path, n_bytes)
    # Not by Image.open: it hides why a file was refused, and its limit of pixels is a constant.
    with path.open("rb") as stream, kind(stream) as image:
        limits.check_expansion(path, image.width * image.height * _BYTES_PER_PIXEL, n_bytes)
        n_frames = getattr(image, "n_frames", 1)
        if n_frames > 1:
            raise MalformedInputError(
                f"'{path}' should be one picture, but is an animation of {n_frames} frames; export the frames as a "
                "TIFF stack."
            )
        image.load()
        yield image


def plain_samples(path: Path, image: Image) -> tuple[Array, tuple[str, ...]]:
    """Convert an opened picture to 8-bit gray, gray with alpha, RGB or RGBA samples, (H, W) or (H, W, S).

    Returns:
        The samples, and notes on the conversion.
    """
    mode = image.mode
    notes: tuple[str, ...] = ()
    if mode == "CMYK":
        raise MalformedInputError(f"'{path}' should be gray or RGB, but is CMYK; convert it to RGB first.")
    transparent = "transparency" in image.info
    if mode in ("P", "PA"):
        target, notes = ("RGBA" if transparent or mode == "PA" else "RGB"), ("the palette was expanded to colors",)
    elif mode == "1":
        target, notes = "L", ("black and white were read as 0 and 255",)
    elif mode in ("L", "RGB") and transparent:
        target, notes = ("LA" if mode == "L" else "RGBA"), ("the transparent color was read as an alpha channel",)
    elif mode in ("L", "LA", "RGB", "RGBA"):
        target = mode
    else:
        raise MalformedInputError(f"'{path}' should be gray or RGB, but its pixels are of kind {mode}.")
    image = image if target == mode else image.convert(target)
    samples = np.empty((image.height, image.width, *([len(target)] if target != "L" else [])), np.uint8)
    n_rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, n_rows):
        end = min(top + n_rows, image.height)
        samples[top:end] = np.asarray(image.crop((0, top, image.width, end)))
    return samples, notes


def stored_picture(
    image: Image, samples: Array, notes: tuple[str, ...], record: dict[str, Any] | None = None, own: Metadata = _NONE
) -> StoredImage:
    """Add the metadata of a picture to its samples and notes.

    Args:
        image: the opened picture, with the metadata that all these formats share.
        samples: of the picture.
        notes: on their conversion.
        record: of the run that wrote it; `None` looks for one in the EXIF block.
        own: the metadata of this format alone.
    """
    block, orientation, inside = metadata.split_exif(image.info.get("exif"))
    return StoredImage(
        samples=samples,
        axes="YX" if samples.ndim == 2 else "YXS",
        metadata=replace(
            own,
            resolution=_resolution(image.info.get("dpi")),
            icc_profile=image.info.get("icc_profile") or None,
            exif=block,
            unsupported=(*own.unsupported, *(name for name, key in _NEVER_CARRIED.items() if image.info.get(key))),
        ),
        record=record or inside,
        alpha="unassociated" if samples.ndim == 3 and samples.shape[2] in (2, 4) else None,
        orientation=orientation,
        notes=notes,
    )


def _resolution(dpi: Any) -> Resolution | None:  # noqa: ANN401
    if not isinstance(dpi, tuple) or len(dpi) != 2 or not all(0 < float(value) < 1e9 for value in dpi):
        return None
    x, y = (Fraction(float(value)).limit_denominator(10_000) for value in dpi)
    return Resolution(x, y, "inch") if x and y else None


def save_options(known: Metadata) -> dict[str, Any]:
    """List Pillow's arguments for the metadata that all these formats share."""
    options: dict[str, Any] = {"icc_profile": known.icc_profile, "exif": known.exif}
    if known.resolution:
        per_inch = known.resolution.per("inch")
        options["dpi"] = (float(per_inch.x), float(per_inch.y))
    return {name: value for name, value in options.items() if value}


class PillowCodec(PictureCodec):
    """A format of 8 bits that Pillow reads and writes."""

    dtypes = ("uint8",)
    plugin: tuple[str, str]
    """Pillow's module of the format, and the class of its files in it."""
    save_arguments: ClassVar[Mapping[str, Any]] = {}
    """Pillow's arguments for every picture that is written."""

    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read a picture."""
        module, kind = self.plugin
        with opened_picture(path, getattr(importlib.import_module(f"PIL.{module}"), kind)) as image:
            return stored_picture(image, *plain_samples(path, image))

    def write(self, path: Path, image: StoredImage) -> None:
        """Write a picture."""
        from PIL import Image

        options = {**self.save_arguments, **self.metadata_arguments(image)}
        Image.fromarray(np.asarray(image.samples)).save(path, self.name, **options)

    def metadata_arguments(self, image: StoredImage) -> dict[str, Any]:
        """List Pillow's arguments for the metadata of a picture, and for the record of the run."""
        return save_options(image.metadata)


class Bmp(PillowCodec):
    """Windows bitmaps."""

    name = "BMP"
    suffixes = (".bmp",)
    magic = (b"BM",)
    carries = frozenset({"resolution"})
    plugin = "BmpImagePlugin", "BmpImageFile"


BMP = Bmp()


class Gif(PillowCodec):
    """GIF files of one frame, which are only read: 256 colors would spoil a result."""

    name = "GIF"
    suffixes = (".gif",)
    magic = (b"GIF87a", b"GIF89a")
    plugin = "GifImagePlugin", "GifImageFile"
    write = Codec.write


GIF = Gif()


class ExifCodec(PillowCodec):
    """A format that holds the record of a run in its EXIF block."""

    record_inside = True
    holds_alpha = True
    holds_gray = False
    carries = frozenset({"icc_profile", "exif"})

    def metadata_arguments(self, image: StoredImage) -> dict[str, Any]:
        """List Pillow's arguments, among them the EXIF block with the record."""
        block = metadata.put_record(image.metadata.exif, image.record or {})
        return super().metadata_arguments(image) | {"exif": block}


class WebP(ExifCodec):
    """WebP files, written without loss."""

    name = "WebP"
    suffixes = (".webp",)
    max_side = 16_383
    plugin = "WebPImagePlugin", "WebPImageFile"
    # Without `exact` the colors below full transparency would be zeroed.
    save_arguments: ClassVar = {"lossless": True, "exact": True}

    def recognizes(self, head: bytes) -> bool:
        """Look for the kind of RIFF file."""
        return head[:4] == b"RIFF" and head[8:12] == b"WEBP"

    def alpha_refusal(self, request: WriteRequest, alpha: Array) -> str | None:
        """Explain why the alpha channel cannot be written; None if it can."""
        is_opaque = bool((alpha == 255).all())
        return "it is opaque everywhere, which WebP does not store" if is_opaque else None


WEBP = WebP()

_CONFIGURATION, _MORE_THAN_8_BITS = b"av1C", 0x40


class Avif(ExifCodec):
    """AVIF files, written with little loss: of quality 95, with colors of full resolution."""

    name = "AVIF"
    suffixes = (".avif",)
    is_lossless = False
    plugin = "AvifImagePlugin", "AvifImageFile"
    save_arguments: ClassVar = {"quality": 95, "subsampling": "4:4:4"}

    def recognizes(self, head: bytes) -> bool:
        """Look for the brand of the file."""
        return head[4:12] in (b"ftypavif", b"ftypavis")

    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read a picture; Pillow keeps 8 bits of its samples."""
        image = super().read(path)
        # By the AV1 Image File Format, section 2.2, in the header: the samples behind it are not read again.
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            place = data.find(_CONFIGURATION)
            if place >= 0 and data[place + len(_CONFIGURATION) + 2] & _MORE_THAN_8_BITS:
                return image.noting("samples of more than 8 bits were read as 8 bits")
        return image


AVIF = Avif()

_COMMENT = "JPEG comment"
_RECORD_START = b"deconv:"
_MAX_SEGMENT = 65_000
_MAX_DPI = 65_535
_MAX_SCANS = 64
"""An ordinary progressive picture has about ten; each scan goes through all of the picture."""
_MARKER, _RESTART = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]"), re.compile(rb"\xff([\xd0-\xd7])")
"""The marker of a segment, and one of eight by which a decoder may start again within a scan (ITU-T T.81, annex B)."""
_SCAN, _END, _GRAYS = 0xDA, 0xD9, range(126, 131)
_MORE = bytes(range(1, 255))
"""A decoder that lacks rows decodes these bytes instead."""


class Jpeg(PillowCodec):
    """JPEG files, written of quality 95, with colors of full resolution; the record of a run is a comment."""

    name = "JPEG"
    suffixes = (".jpg", ".jpeg")
    magic = (b"\xff\xd8\xff",)
    is_lossless = False
    record_inside = True
    carries = frozenset({"resolution", "icc_profile", "exif"})
    max_side = 65_500
    save_arguments: ClassVar = {"quality": 95, "subsampling": 0}

    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read a picture."""
        from PIL.JpegImagePlugin import JpegImageFile

        data = path.read_bytes()
        ends = _ends_of_scans(data)
        if len(ends) > _MAX_SCANS:
            raise MalformedInputError(f"'{path}' is a JPEG file of {len(ends)} scans, but an honest one has about ten.")
        with opened_picture(path, JpegImageFile) as image:
            samples, notes = plain_samples(path, image)
            last = image.crop((image.width - 1, image.height - 1, *image.size)).convert("L").getpixel((0, 0))
            if ends and last in _GRAYS and _lacks_rows(data, ends[0], image.size):
                raise MalformedInputError(
                    f"'{path}' promises {image.height} rows, but holds fewer; it is cut short or damaged."
                )
            if "mp" in image.info:
                notes = (*notes, "the file holds further pictures after the first, which were not read")
            comments = [content for name, content in image.applist if name == "COM"]
            found = [text.removeprefix(_RECORD_START) for text in comments if text.startswith(_RECORD_START)]
            others = [text for text in comments if not text.startswith(_RECORD_START)]
            record = records.decode_record(found[-1].decode("utf-8", "replace")) if found else None
            own = Metadata(native={_COMMENT: others[-1]} if others else {})
            stored = stored_picture(image, samples, notes, record, own)
            tables = image.quantization
            return replace(stored, jpeg_table=tuple(tables[min(tables)]) if tables else None)

    def carry(self, request: WriteRequest, image: StoredImage) -> tuple[Metadata, list[str]]:
        """Choose the metadata; some are too large for the format."""
        kept, lost = super().carry(request, image)
        if kept.exif and len(kept.exif) > _MAX_SEGMENT:
            kept, lost = replace(kept, exif=None), [*lost, "EXIF (too large for JPEG)"]
        per_inch = kept.resolution.per("inch") if kept.resolution else None
        if per_inch and not 1 <= min(per_inch.x, per_inch.y) <= max(per_inch.x, per_inch.y) < _MAX_DPI:
            kept, lost = replace(kept, resolution=None), [*lost, "resolution (JPEG has 1 to 65535 dots per inch)"]
        return kept, lost

    def metadata_arguments(self, image: StoredImage) -> dict[str, Any]:
        """List Pillow's arguments, with the record in a comment of its own."""
        options = super().metadata_arguments(image)
        if "dpi" in options:
            options["dpi"] = tuple(round(value) for value in options["dpi"])
        text = _RECORD_START + records.encode_record(image.record or {}).encode("ascii")
        segment = b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text
        return options | {"comment": image.metadata.native.get(_COMMENT, b"")[:_MAX_SEGMENT], "extra": segment}


JPEG = Jpeg()


def _ends_of_scans(data: bytes) -> list[int]:
    """List the byte behind each scan of the first picture."""
    place, ends = 2, list[int]()
    while (found := _MARKER.search(data, place)) and data[found.start() + 1] != _END:
        kind, place = data[found.start() + 1], found.end()
        place += int.from_bytes(data[place : place + 2], "big")
        if kind == _SCAN and (after := _MARKER.search(data, place)):
            ends.append(after.start())
    return ends


def _lacks_rows(data: bytes, end: int, size: tuple[int, int]) -> bool:
    """Check whether more data at the end of the first scan change the picture: its last rows were made up, of gray."""
    from PIL.JpegImagePlugin import JpegImageFile

    def decoded(content: bytes) -> Array:
        with JpegImageFile(io.BytesIO(content)) as image:
            image.draft("L", (size[0] // 8, size[1] // 8))
            return np.asarray(image)

    restarts = _RESTART.findall(data[:end]) or [b"\xd7"]
    more = _MORE + bytes([0xFF, 0xD0 | (restarts[-1][0] + 1) % 8]) + _MORE
    return not np.array_equal(decoded(data), decoded(data[:end] + more + data[end:]))
