"""AVIF by Pillow; the record of a run is a line of the user comment in its EXIF block."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import ClassVar

from deconv_cli.io.codecs.pillow_pictures import ExifCodec
from deconv_cli.io.stored_image import StoredImage

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
        """Read a picture, of whose samples Pillow keeps 8 bits."""
        image = super().read(path)
        # By the AV1 Image File Format, section 2.2, in the header: the samples behind it are not read again.
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            place = data.find(_CONFIGURATION)
            if place >= 0 and data[place + len(_CONFIGURATION) + 2] & _MORE_THAN_8_BITS:
                return image.noting("samples of more than 8 bits were read as 8 bits")
        return image


AVIF = Avif()
