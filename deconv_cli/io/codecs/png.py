"""PNG: Pillow reads and writes its chunks, imagecodecs its 16-bit samples, which Pillow would cut to 8 bits.

Source: Portable Network Graphics (PNG) Specification, third edition, W3C, sections 5 and 11.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from deconv_cli.io import limits, records
from deconv_cli.io.codec import PictureCodec, StoredImage
from deconv_cli.io.codecs.pillow_pictures import opened_picture, plain_samples, save_options, stored_picture
from deconv_cli.io.metadata import Metadata

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_CHUNKS = (b"gAMA", b"cHRM", b"sRGB", b"cICP")
"""They are copied from the source to the result."""
_UNDERSTOOD = (
    *(*_COLOR_CHUNKS, b"IHDR", b"IDAT", b"IEND", b"PLTE", b"tRNS"),
    *(b"iCCP", b"pHYs", b"tEXt", b"zTXt", b"iTXt", b"eXIf"),
)
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row of each pass of an interlaced picture, and the steps to the next ones."""
_SAMPLES_PER_PIXEL = {0: 1, 2: 3, 3: 4, 4: 2, 6: 4}
"""By color type; a palette counts as four."""
_TEXT, _CHUNK = "text ", "PNG chunk "
_LONG_TEXT = 1024


class Png(PictureCodec):
    """PNG files of 8 or 16 bits."""

    name = "PNG"
    suffixes = (".png",)
    magic = (_SIGNATURE,)
    dtypes = ("uint8", "uint16")
    record_inside = True
    holds_alpha = True
    carries = frozenset({"resolution", "icc_profile", "exif"})

    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read a picture; the checksum of every chunk is compared."""
        import imagecodecs
        from PIL.PngImagePlugin import PngImageFile

        limits.check_budget(path, path.stat().st_size)
        with path.open("rb") as stream:
            chunks = list(_read_chunks(stream))
        bit_depth, color_type = _check_header(path, chunks[0])
        _check_rows(chunks)
        with opened_picture(path, PngImageFile) as image:
            notes: tuple[str, ...] = ()
            if bit_depth == 16:
                samples = imagecodecs.png_decode(path.read_bytes())
            else:
                samples, notes = plain_samples(path, image)
            if color_type == 0 and bit_depth in (2, 4):
                notes = (*notes, f"{bit_depth}-bit gray was read as 0 to 255")
            texts = {str(keyword): str(text) for keyword, text in image.text.items()}
            record = records.decode_record(texts.pop(records.KEYWORD, None))
            return stored_picture(image, samples, notes, record, _own_metadata(chunks, texts))

    def write(self, path: Path, image: StoredImage) -> None:
        """Write a picture: the samples by imagecodecs, everything else by Pillow around a single pixel."""
        import imagecodecs
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo, putchunk

        info = PngInfo()
        record = {_TEXT + records.KEYWORD: records.encode_record(image.record or {})}
        for name, content in (image.metadata.native | record).items():
            if name.startswith(_TEXT):
                info.add_itxt(name.removeprefix(_TEXT), content, zip=len(content) > _LONG_TEXT)
            else:
                info.add(name.removeprefix(_CHUNK).encode(), content)
        described = io.BytesIO()
        Image.new("L", (1, 1)).save(described, "PNG", pnginfo=info, **save_options(image.metadata))
        encoded = io.BytesIO(imagecodecs.png_encode(np.array(image.samples, order="C")))
        header, *pixels = _read_chunks(encoded)
        others = [chunk for chunk in _read_chunks(described) if chunk[0] not in (b"IHDR", b"IDAT", b"IEND")]
        with path.open("wb") as stream:
            stream.write(_SIGNATURE)
            for kind, data in (header, *others, *pixels):
                putchunk(stream, kind, data)


PNG = Png()


def _read_chunks(stream: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Read the chunks of a file down to IEND; Pillow's reader compares the checksums."""
    from PIL.PngImagePlugin import ChunkStream

    stream.seek(len(_SIGNATURE))
    reader = ChunkStream(stream)
    name = b""
    while name != b"IEND":
        name, _, size = reader.read()
        content = stream.read(size)
        if len(content) < size:
            raise EOFError("it is cut short")
        if name != b"IEND":
            reader.crc(name, content)
        yield name, content


def _own_metadata(chunks: list[tuple[bytes, bytes]], texts: dict[str, str]) -> Metadata:
    """Read the metadata of PNG alone, texts and chunks about color; list the chunks that are not understood."""
    colors = {_CHUNK + name.decode(): content for name, content in chunks if name in _COLOR_CHUNKS}
    unknown = sorted({name for name, _ in chunks} - set(_UNDERSTOOD))
    return Metadata(
        native={**{_TEXT + keyword: text for keyword, text in texts.items()}, **colors},
        unsupported=tuple(_CHUNK + name.decode() for name in unknown),
    )


def _check_rows(chunks: list[tuple[bytes, bytes]]) -> None:
    """Refuse fewer rows than the header promises: Pillow would add black ones."""
    width, height, bit_depth, color_type, *_, is_interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    n_bits = bit_depth * (1 if color_type == 3 else _SAMPLES_PER_PIXEL[color_type])
    n_bytes = 0
    for x, y, across, down in _ADAM7 if is_interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // across), -(-(height - y) // down)
        n_bytes += rows * (1 + -(-columns * n_bits // 8)) if columns > 0 else 0
    packed = b"".join(content for name, content in chunks if name == b"IDAT")
    if len(zlib.decompressobj().decompress(packed, n_bytes)) < n_bytes:
        raise EOFError("it lacks some of its rows")


def _check_header(path: Path, chunk: tuple[bytes, bytes]) -> tuple[int, int]:
    """Compare the promised size with the file; return bit depth and color type."""
    name, content = chunk
    if name != b"IHDR" or len(content) != 13:
        raise ValueError("it does not begin with its header")
    width, height, bit_depth, color_type = struct.unpack(">IIBB", content[:10])
    if color_type not in _SAMPLES_PER_PIXEL or bit_depth not in (1, 2, 4, 8, 16):
        raise ValueError("its header is not valid")
    n_bytes = width * height * _SAMPLES_PER_PIXEL[color_type] * (4 if bit_depth == 16 else 1)
    limits.check_expansion(path, n_bytes, path.stat().st_size)
    return bit_depth, color_type
