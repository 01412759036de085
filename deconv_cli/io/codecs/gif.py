"""GIF by Pillow; only read, since its 256 colors would spoil a result."""

from __future__ import annotations

from deconv_cli.io.codec import Codec
from deconv_cli.io.codecs.pillow_pictures import PillowCodec


class Gif(PillowCodec):
    """GIF files of one frame."""

    name = "GIF"
    suffixes = (".gif",)
    magic = (b"GIF87a", b"GIF89a")
    dtypes = ("uint8",)
    plugin = "GifImagePlugin", "GifImageFile"
    write = Codec.write


GIF = Gif()
