"""BMP by Pillow."""

from __future__ import annotations

from deconv_cli.io.codecs.pillow_pictures import PillowCodec


class Bmp(PillowCodec):
    """Windows bitmaps."""

    name = "BMP"
    suffixes = (".bmp",)
    magic = (b"BM",)
    carries = frozenset({"resolution"})
    plugin = "BmpImagePlugin", "BmpImageFile"


BMP = Bmp()
