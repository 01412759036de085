"""GIF by Pillow; only read, since its 256 colors would spoil a result."""

from __future__ import annotations

from pathlib import Path

from deconv_cli.io.codec import PictureCodec
from deconv_cli.io.codecs.pillow_pictures import opened_picture, plain_samples, stored_picture
from deconv_cli.io.stored_image import StoredImage


class Gif(PictureCodec):
    """GIF files of one frame."""

    name = "GIF"
    suffixes = (".gif",)
    magic = (b"GIF87a", b"GIF89a")

    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read a picture."""
        from PIL.GifImagePlugin import GifImageFile

        with opened_picture(path, GifImageFile) as image:
            return stored_picture(image, *plain_samples(path, image))


GIF = Gif()
