"""BMP by Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deconv_cli.io.codec import PictureCodec
from deconv_cli.io.codecs.pillow_pictures import opened_picture, plain_samples, save_options, stored_picture
from deconv_cli.io.stored_image import StoredImage


class Bmp(PictureCodec):
    """Windows bitmaps."""

    name = "BMP"
    suffixes = (".bmp",)
    magic = (b"BM",)
    dtypes = ("uint8",)
    carries = frozenset({"resolution"})

    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read a picture."""
        from PIL.BmpImagePlugin import BmpImageFile

        with opened_picture(path, BmpImageFile) as image:
            return stored_picture(image, *plain_samples(path, image))

    def write(self, path: Path, image: StoredImage) -> None:
        """Write a picture."""
        from PIL import Image

        Image.fromarray(np.asarray(image.samples)).save(path, "BMP", **save_options(image.metadata))


BMP = Bmp()
