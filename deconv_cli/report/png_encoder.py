"""PNG of one plane, of a plane under a palette, or of three colors, as a page carries it; files are written by `io`."""

from __future__ import annotations

import struct
import zlib

import torch
from torch import Tensor

GRAY, RGB, PALETTE = 0, 2, 3
FILTER_UP = 2


def encode_png(samples: Tensor, palette: Tensor | None = None, alpha: bytes = b"") -> bytes:
    """Encode samples of 8 bits.

    Args:
        samples: uint8, shape `(H, W)` or `(H, W, 3)`.
        palette: uint8, shape `(n, 3)`: the colors that `(H, W)` samples stand for.
        alpha: opacity of the first colors of the palette, a byte each.

    Returns:
        The whole file (Portable Network Graphics Specification, third edition, 2025).
    """
    height, width = samples.shape[:2]
    color_type = RGB if samples.ndim == 3 else GRAY if palette is None else PALETTE
    lines = samples.contiguous().reshape(height, -1)
    if color_type != PALETTE:
        # The difference to the line above is what compresses in a photograph; numbers of colors have none.
        lines = torch.cat([lines[:1], lines[1:] - lines[:-1]])
    kind = torch.full((height, 1), 0 if color_type == PALETTE else FILTER_UP, dtype=torch.uint8)
    chunks = [_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0))]
    if palette is not None:
        chunks.append(_chunk(b"PLTE", bytes(palette.flatten().tolist())))
        chunks += [_chunk(b"tRNS", alpha)] if alpha else []
    body = zlib.compress(torch.cat([kind, lines], dim=1).numpy().tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + b"".join([*chunks, _chunk(b"IDAT", body), _chunk(b"IEND", b"")])


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
