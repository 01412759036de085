"""Pictures by Pillow, opened once their size is known: JPEG, PNG, BMP, GIF, WebP and AVIF.

imagecodecs reads and writes the samples of PNG files of 16 bits, which Pillow would cut to 8 bits.
"""

from __future__ import annotations

import importlib
import io
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from deconv_cli.errors import MalformedInputError
from deconv_cli.io import limits, records
from deconv_cli.io.codec import ALPHA_NOTE, Codec, PictureCodec, StoredImage, WriteRequest, is_opaque, zeros_of
from deconv_cli.io.layout import Array
from deconv_cli.io.metadata import Metadata, PixelDensity, put_record, split_exif

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

_BYTES_PER_PIXEL = 3
_GRAY_MODES = ("L", "LA", "1", "I", "I;16", "I;16B")
_NEVER_CARRIED = {
    **{"XMP": "xmp", "Photoshop": "photoshop", "comment": "comment"},
    **{"PNG chunk cHRM": "chromaticity", "PNG chunk cICP": "coding"},
}


class PillowCodec(PictureCodec):
    """A format of 8 bits that Pillow reads and writes."""

    dtypes: tuple[str, ...] = ("uint8",)
    plugin: tuple[str, str]
    """Pillow's module of the format, and the class of its files in it."""
    save_arguments: ClassVar[Mapping[str, Any]] = {}
    """Pillow's arguments for every picture that is written."""

    @contextmanager
    def opened(self, path: Path, data: bytes | None = None, *, decodes: bool = True) -> Iterator[ImageFile]:
        """Open a picture, or `data` in its place; check its size, then decode it; refuse animations."""
        n_bytes = path.stat().st_size
        limits.check_budget(path, n_bytes)
        module, kind = self.plugin
        # Not by Image.open: it hides why a file was refused, and its limit of pixels is a constant.
        file = getattr(importlib.import_module(f"PIL.{module}"), kind)
        with path.open("rb") if data is None else io.BytesIO(data) as stream, file(stream) as image:
            limits.check_expansion(path, image.width * image.height * _BYTES_PER_PIXEL, n_bytes)
            n_frames = getattr(image, "n_frames", 1)
            if n_frames > 1:
                raise MalformedInputError(
                    f"'{path}' should be one picture, but is an animation of {n_frames} frames; export the frames as "
                    "a TIFF stack."
                )
            if decodes:
                image.load()
            yield image

    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read a picture."""
        with self.opened(path) as image:
            return _stored(image, *_plain_samples(path, image))

    def read_header(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read the metadata before the samples, where deconv writes its record."""
        with self.opened(path, decodes=False) as image:
            size = (image.height, image.width)
            return _stored(image, zeros_of(size if image.mode in _GRAY_MODES else (*size, 3), "uint8"), ())

    def write(self, path: Path, image: StoredImage) -> None:
        """Write a picture."""
        from PIL import Image

        options = {**self.save_arguments, **self.metadata_arguments(image)}
        Image.fromarray(np.asarray(image.samples)).save(path, self.name, **options)

    def metadata_arguments(self, image: StoredImage) -> dict[str, Any]:
        """List Pillow's arguments for the metadata of a picture, and for the record of the run."""
        known = image.metadata
        options: dict[str, Any] = {"icc_profile": known.icc_profile, "exif": known.exif}
        if known.density:
            per_inch = known.density.per("inch")
            options["dpi"] = (float(per_inch.x), float(per_inch.y))
        return {name: value for name, value in options.items() if value}


def _plain_samples(path: Path, image: Image) -> tuple[Array, tuple[str, ...]]:
    """Convert an opened picture to 8-bit gray or RGB samples, (H, W) or (H, W, 3); return notes on that, too."""
    targets = {"L": "L", "LA": "L", "1": "L", "RGB": "RGB", "RGBA": "RGB", "P": "RGB", "PA": "RGB"}
    if image.mode not in targets:
        raise MalformedInputError(
            f"'{path}' should be gray or RGB, but is {image.mode}; convert it, for instance with ImageMagick: "
            "magick IN -colorspace sRGB OUT.png."
        )
    notes = ["the palette was expanded to colors"] if image.mode in ("P", "PA") else []
    notes += ["black and white were read as 0 and 255"] if image.mode == "1" else []
    if image.has_transparency_data and not is_opaque(np.array(image.convert("RGBA").getchannel("A"))):
        notes.append(ALPHA_NOTE)
    return np.array(image.convert(targets[image.mode])), tuple(notes)


def _stored(
    image: Image,
    samples: Array,
    notes: tuple[str, ...],
    native: dict[str, Any] | None = None,
) -> StoredImage:
    """Add the metadata of an opened picture to its samples and notes; `native` is metadata of the format alone."""
    block, orientation, inside = split_exif(image.info.get("exif"))
    return StoredImage(
        samples=samples,
        axes="YX" if samples.ndim == 2 else "YXS",
        metadata=Metadata(
            density=_density(image.info.get("dpi")),
            icc_profile=image.info.get("icc_profile") or None,
            exif=block,
            native=native or {},
            unsupported=tuple(name for name, key in _NEVER_CARRIED.items() if image.info.get(key)),
        ),
        record=records.decode_record(image.info.get(records.KEYWORD)) or inside,
        orientation=orientation,
        notes=notes,
    )


def _density(dpi: Any) -> PixelDensity | None:  # noqa: ANN401
    if not isinstance(dpi, tuple) or len(dpi) != 2 or not all(0 < float(value) < 1e9 for value in dpi):
        return None
    x, y = (Fraction(float(value)).limit_denominator(10_000) for value in dpi)
    return PixelDensity(x, y, "inch") if x and y else None


class Bmp(PillowCodec):
    """Windows bitmaps."""

    name = "BMP"
    suffixes = (".bmp",)
    magic = (b"BM",)
    carries = frozenset({"density"})
    plugin = "BmpImagePlugin", "BmpImageFile"


class Gif(PillowCodec):
    """GIF files of one frame, which are only read: 256 colors would spoil a result."""

    name = "GIF"
    suffixes = (".gif",)
    magic = (b"GIF87a", b"GIF89a")
    plugin = "GifImagePlugin", "GifImageFile"
    write = Codec.write


class ExifCodec(PillowCodec):
    """A format that holds the record of a run in its EXIF block."""

    record_inside = True
    holds_gray = False
    carries = frozenset({"icc_profile", "exif"})

    def metadata_arguments(self, image: StoredImage) -> dict[str, Any]:
        """List Pillow's arguments, among them the EXIF block with the record."""
        block = put_record(image.metadata.exif, image.record or {})
        return super().metadata_arguments(image) | {"exif": block}


class WebP(ExifCodec):
    """WebP files, written without loss."""

    name = "WebP"
    suffixes = (".webp",)
    magic, magic_at = (b"WEBP",), 8
    max_side = 16_383
    plugin = "WebPImagePlugin", "WebPImageFile"
    save_arguments: ClassVar = {"lossless": True}


class Avif(ExifCodec):
    """AVIF files, of which Pillow keeps 8 bits; written of quality 95, with colors of full resolution."""

    name = "AVIF"
    suffixes = (".avif",)
    magic, magic_at = (b"ftypavif", b"ftypavis"), 4
    is_lossless = False
    plugin = "AvifImagePlugin", "AvifImageFile"
    save_arguments: ClassVar = {"quality": 95, "subsampling": "4:4:4"}


_MAX_EXIF, _MAX_DPI = 60_000, 65_535
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""The marker of a segment, which no byte of a scan looks like (ITU-T T.81, annex B)."""
_MAX_SCANS, _SCAN, _END = 64, 0xDA, 0xD9
_LOOKAHEAD = b"\xfe" * 16
"""As many bytes as a decoder reads ahead, with the bits of long codes, so that they make up few blocks."""


class Jpeg(ExifCodec):
    """JPEG files, written of quality 95, with colors of full resolution."""

    name = "JPEG"
    suffixes = (".jpg", ".jpeg")
    magic = (b"\xff\xd8\xff",)
    is_lossless = False
    holds_gray = True
    carries = frozenset({"density", "icc_profile", "exif"})
    max_side = 65_500
    plugin = "JpegImagePlugin", "JpegImageFile"
    save_arguments: ClassVar = {"quality": 95, "subsampling": 0}

    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read a picture; of several pictures in a file the first."""
        limits.check_budget(path, path.stat().st_size)
        data = path.read_bytes()
        n_scans, end = _find_scans(data)
        if n_scans > _MAX_SCANS:
            raise ValueError(f"it has {n_scans} scans, but a normal file has about ten")  # each takes time
        # The decoder invents rows that are missing before the end marker. Without that marker it asks for more bytes.
        with self.opened(path, data[:end] + _LOOKAHEAD if n_scans == 1 and end < len(data) else data) as image:
            samples, notes = _plain_samples(path, image)
            tables: dict[int, list[int]] = getattr(image, "quantization", {})
            if "mp" in image.info:
                notes += ("the file holds more pictures after the first, which were not read",)
            return replace(_stored(image, samples, notes), jpeg_table=tuple(tables[min(tables)]) if tables else None)

    def choose_metadata(self, request: WriteRequest, image: StoredImage) -> tuple[Metadata, list[str]]:
        """Choose the metadata; some are too large for the format."""
        kept, lost = super().choose_metadata(request, image)
        if kept.exif and len(kept.exif) > _MAX_EXIF:
            kept, lost = replace(kept, exif=None), [*lost, "EXIF (too large for JPEG)"]
        per_inch = kept.density.per("inch") if kept.density else None
        if per_inch and not 1 <= min(per_inch.x, per_inch.y) <= max(per_inch.x, per_inch.y) < _MAX_DPI:
            kept, lost = replace(kept, density=None), [*lost, "resolution (JPEG has 1 to 65535 dots per inch)"]
        return kept, lost


def _find_scans(data: bytes) -> tuple[int, int]:
    """Count the scans of the first picture; return the place of its end too."""
    place, n_scans = 2, 0
    while (found := _MARKER.search(data, place)) and data[found.start() + 1] != _END:
        n_scans += data[found.start() + 1] == _SCAN
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return n_scans, found.start() if found else len(data)


_SIGNATURE, _END_OF_HEADER = b"\x89PNG\r\n\x1a\n", 33
_TEXT, _CHUNK = "text ", "PNG chunk "
_LONG_TEXT = 1024


class Png(PillowCodec):
    """PNG files of 8 or 16 bits.

    Source: Portable Network Graphics (PNG) Specification, third edition, W3C, sections 5 and 11.
    """

    name = "PNG"
    suffixes = (".png",)
    magic = (_SIGNATURE,)
    dtypes = ("uint8", "uint16")
    record_inside = True
    carries = frozenset({"density", "icc_profile", "exif"})
    plugin = "PngImagePlugin", "PngImageFile"

    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read a picture, with its texts, its gamma and its mark of sRGB."""
        with path.open("rb") as stream:
            width, height, bit_depth, color_type = struct.unpack(">16xIIBB", stream.read(26))
            has_coding = b"cICP" in stream.read(4096).partition(b"IDAT")[0]  # Pillow passes this chunk by
        if bit_depth == 16:
            limits.check_expansion(path, width * height * (4 if color_type == 0 else 16), path.stat().st_size)
        with self.opened(path) as image:
            samples, notes = _read_deep(path) if bit_depth == 16 else _plain_samples(path, image)
            if color_type == 0 and bit_depth in (2, 4):
                notes = (*notes, f"{bit_depth}-bit gray was read as 0 to 255")
            texts = {str(keyword): str(text) for keyword, text in getattr(image, "text", {}).items()}
            native: dict[str, Any] = {_TEXT + name: text for name, text in texts.items() if name != records.KEYWORD}
            if "gamma" in image.info:
                native[_CHUNK + "gAMA"] = struct.pack(">I", round(100_000 * image.info["gamma"]))
            if "srgb" in image.info:
                native[_CHUNK + "sRGB"] = bytes([image.info["srgb"]])
            image.info["coding"] = has_coding
            return _stored(image, samples, notes, native)

    def write(self, path: Path, image: StoredImage) -> None:
        """Write a picture: the samples by imagecodecs, everything else by Pillow around a single pixel."""
        import imagecodecs
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        record = {_TEXT + records.KEYWORD: records.encode_record(image.record or {})}
        for name, content in {**image.metadata.native, **record}.items():
            if isinstance(content, bytes):
                info.add(name.removeprefix(_CHUNK).encode(), content)
            else:
                info.add_itxt(name.removeprefix(_TEXT), str(content), zip=len(str(content)) > _LONG_TEXT)
        stream = io.BytesIO()
        Image.new("L", (1, 1)).save(stream, "PNG", pnginfo=info, **self.metadata_arguments(image))
        # A quarter of the time. Filtered photographs hardly repeat but in runs, patterns do, as 64 rows show.
        samples, known = np.array(image.samples, order="C"), imagecodecs.PNG.STRATEGY
        strip = samples[len(samples) // 2 :][:64]
        tried = {len(imagecodecs.png_encode(strip, level=1, strategy=s)): s for s in (known.DEFAULT, known.RLE)}
        described, encoded = stream.getvalue(), imagecodecs.png_encode(samples, level=1, strategy=tried[min(tried)])
        between = described[_END_OF_HEADER : described.rindex(b"IDAT") - 4]
        path.write_bytes(encoded[:_END_OF_HEADER] + between + encoded[_END_OF_HEADER:])


def _read_deep(path: Path) -> tuple[Array, tuple[str, ...]]:
    """Read samples of 16 bits, of which Pillow keeps 8; without alpha, which a transparent color becomes too."""
    import imagecodecs

    samples: Array = imagecodecs.png_decode(path.read_bytes())
    if samples.ndim == 2 or samples.shape[-1] == 3:
        return samples, ()
    notes = () if is_opaque(samples[..., -1]) else (ALPHA_NOTE,)
    return samples[..., 0] if samples.shape[-1] == 2 else samples[..., :-1], notes


PNG, JPEG, WEBP, AVIF, BMP, GIF = Png(), Jpeg(), WebP(), Avif(), Bmp(), Gif()
