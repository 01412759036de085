"""AVIF by Pillow; the record of a run is a line of the user comment in its EXIF block."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from deconv_cli.io import exif
from deconv_cli.io.codec import PictureCodec
from deconv_cli.io.codecs.pillow_pictures import opened_picture, plain_samples, save_options, stored_picture
from deconv_cli.io.stored_image import StoredImage

_CONFIGURATION, _MORE_THAN_8_BITS = b"av1C", 0x40


class Avif(PictureCodec):
    """AVIF files, written with little loss."""

    name = "AVIF"
    suffixes = (".avif",)
    dtypes = ("uint8",)
    is_lossless = False
    record_inside = True
    holds_alpha = True
    holds_gray = False
    carries = frozenset({"icc_profile", "exif"})

    def recognizes(self, head: bytes) -> bool:
        """Look for the brand of the file."""
        return head[4:12] in (b"ftypavif", b"ftypavis")

    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read a picture."""
        from PIL.AvifImagePlugin import AvifImageFile

        with opened_picture(path, AvifImageFile) as image:
            samples, notes = plain_samples(path, image)
            if _has_more_than_8_bits(path):
                notes = (*notes, "samples of more than 8 bits were read as 8 bits")
            return stored_picture(image, samples, notes)

    def write(self, path: Path, image: StoredImage) -> None:
        """Write a picture of quality 95 whose colors have full resolution."""
        from PIL import Image

        options = save_options(image.metadata) | {"exif": exif.put_record(image.metadata.exif, image.record or {})}
        samples = Image.fromarray(np.asarray(image.samples))
        samples.save(path, "AVIF", quality=95, subsampling="4:4:4", **options)


AVIF = Avif()


def _has_more_than_8_bits(path: Path) -> bool:
    """Look into the header, by the AV1 Image File Format, section 2.2: the samples behind it are not read again."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = data.find(_CONFIGURATION)
        return place >= 0 and bool(data[place + len(_CONFIGURATION) + 2] & _MORE_THAN_8_BITS)
