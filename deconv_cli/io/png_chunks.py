"""The chunks of a PNG file: every one is checked, and those that no codec writes are put in by hand.

Source: Portable Network Graphics (PNG) Specification, third edition, W3C, sections 5 and 11.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from deconv_cli.errors import MalformedInputError

SIGNATURE = b"\x89PNG\r\n\x1a\n"

COPIED = (b"gAMA", b"cHRM", b"sRGB", b"cICP")
"""Chunks about color that hold for the result as they did for the source."""

HANDLED = (*COPIED, b"IHDR", b"IDAT", b"IEND", b"PLTE", b"tRNS", b"iCCP", b"pHYs", b"tEXt", b"zTXt", b"iTXt", b"eXIf")


@dataclass(frozen=True)
class PngHeader:
    """What IHDR says."""

    width: int
    height: int
    bit_depth: int
    color_type: int

    @property
    def n_samples(self) -> int:
        """Samples per pixel as stored, a palette index being one."""
        return {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[self.color_type]

    @property
    def n_decoded_bytes(self) -> int:
        """Bytes after decoding, a palette counted as RGBA."""
        n_samples = 4 if self.color_type == 3 else self.n_samples
        return self.width * self.height * n_samples * max(1, self.bit_depth // 8)


def read_chunks(path: Path, data: bytes) -> list[tuple[bytes, bytes]]:
    """Split a PNG file into chunks, of which the first is IHDR and the last IEND.

    Raises:
        MalformedInputError: cut short, or a checksum does not fit.
    """
    chunks: list[tuple[bytes, bytes]] = []
    place = len(SIGNATURE)
    while not chunks or chunks[-1][0] != b"IEND":
        if len(data) < place + 12:
            raise _damaged(path, "it is cut short")
        (size,) = struct.unpack_from(">I", data, place)
        name, content = data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        if len(data) < place + 12 + size:
            raise _damaged(path, "it is cut short")
        (checksum,) = struct.unpack_from(">I", data, place + 8 + size)
        if zlib.crc32(content, zlib.crc32(name)) != checksum:
            raise _damaged(path, f"the checksum of chunk {name!r} does not fit")
        chunks.append((name, content))
        place += 12 + size
    return chunks


def read_header(path: Path, chunks: list[tuple[bytes, bytes]]) -> PngHeader:
    """Read IHDR.

    Raises:
        MalformedInputError: no such header, or values that the format does not know.
    """
    name, content = chunks[0]
    if name != b"IHDR" or len(content) != 13:
        raise _damaged(path, "it does not begin with its header")
    header = PngHeader(*struct.unpack(">IIBB", content[:10]))
    if header.color_type not in (0, 2, 3, 4, 6) or header.bit_depth not in (1, 2, 4, 8, 16):
        raise _damaged(path, "its header is not valid")
    return header


def with_chunks(encoded: bytes, chunks: list[tuple[bytes, bytes]]) -> bytes:
    """Put chunks right behind the header of an encoded PNG file."""
    end_of_header = len(SIGNATURE) + 25
    added = b"".join(_chunk(name, content) for name, content in chunks)
    return encoded[:end_of_header] + added + encoded[end_of_header:]


def text_chunk(keyword: str, text: str) -> tuple[bytes, bytes]:
    """Make an iTXt chunk; long texts are compressed."""
    raw = text.encode("utf-8")
    packed = zlib.compress(raw) if len(raw) > 1024 else raw
    flags = b"\x01\x00" if packed is not raw else b"\x00\x00"
    return b"iTXt", keyword.encode("latin-1", "replace")[:79] + b"\x00" + flags + b"\x00\x00" + packed


def profile_chunk(profile: bytes) -> tuple[bytes, bytes]:
    """Make an iCCP chunk."""
    return b"iCCP", b"ICC Profile\x00\x00" + zlib.compress(profile)


def resolution_chunk(per_meter_x: float, per_meter_y: float) -> tuple[bytes, bytes]:
    """Make a pHYs chunk from pixels per meter."""
    return b"pHYs", struct.pack(">IIB", round(per_meter_x), round(per_meter_y), 1)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _damaged(path: Path, reason: str) -> MalformedInputError:
    return MalformedInputError(f"'{path}' should be a whole PNG file, but {reason}; copy or export it again.")
