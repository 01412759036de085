"""WebP by Pillow; the record of a run is a line of the user comment in its EXIF block."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deconv_cli.io import exif
from deconv_cli.io.codec import Array, PictureCodec, WriteRequest
from deconv_cli.io.codecs.pillow_pictures import opened_picture, plain_samples, save_options, stored_picture
from deconv_cli.io.stored_image import StoredImage


class WebP(PictureCodec):
    """WebP files, written without loss."""

    name = "WebP"
    suffixes = (".webp",)
    dtypes = ("uint8",)
    record_inside = True
    holds_alpha = True
    holds_gray = False
    carries = frozenset({"icc_profile", "exif"})
    max_side = 16_383

    def recognizes(self, head: bytes) -> bool:
        """Look for the kind of RIFF file."""
        return head[:4] == b"RIFF" and head[8:12] == b"WEBP"

    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read a picture."""
        from PIL.WebPImagePlugin import WebPImageFile

        with opened_picture(path, WebPImageFile) as image:
            samples, notes = plain_samples(path, image)
            return stored_picture(image, samples, notes)

    def alpha_refusal(self, request: WriteRequest, alpha: Array) -> str | None:
        """Say why the alpha channel cannot be written; None if it can."""
        is_opaque = bool((alpha == 255).all())
        return "it is opaque everywhere, which WebP does not store" if is_opaque else None

    def write(self, path: Path, image: StoredImage) -> None:
        """Write a picture without loss."""
        from PIL import Image

        options = save_options(image.metadata) | {"exif": exif.put_record(image.metadata.exif, image.record or {})}
        # Without `exact` the colors below full transparency would be zeroed.
        Image.fromarray(np.asarray(image.samples)).save(path, "WEBP", lossless=True, exact=True, **options)


WEBP = WebP()
