"""WebP by Pillow; the record of a run is a line of the user comment in its EXIF block."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deconv_cli.io import exif, records
from deconv_cli.io.codec import Array, PictureCodec, WriteRequest
from deconv_cli.io.codecs.pillow_pictures import opened_picture, plain_samples, save_options, stored_picture
from deconv_cli.io.stored_image import Metadata, StoredImage


class WebP(PictureCodec):
    """WebP files, written without loss."""

    name = "WebP"
    suffixes = (".webp",)
    dtypes = ("uint8",)
    record_inside = True
    holds_alpha = True
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
            record = records.take_line(exif.read_comment(exif.with_marker(image.info.get("exif"))))
            return stored_picture(image, samples, notes, record, Metadata())

    def arrange(self, request: WriteRequest, samples: Array, alpha: Array | None) -> StoredImage:
        """Write gray as equal colors, since there is no gray."""
        if samples.shape[1] > 1:
            return super().arrange(request, samples, alpha)
        arranged = super().arrange(request, np.repeat(samples, 3, axis=1), alpha)
        note = "WebP has no gray, so the plane was written as equal red, green and blue"
        return StoredImage(arranged.samples, arranged.axes, notes=(note,))

    def alpha_refusal(self, request: WriteRequest, alpha: Array) -> str | None:
        """Say why the alpha channel cannot be written; None if it can."""
        is_opaque = bool((alpha == 255).all())
        return "it is opaque everywhere, which WebP does not store" if is_opaque else None

    def write(self, path: Path, image: StoredImage) -> None:
        """Write a picture without loss."""
        from PIL import Image

        block = image.metadata.exif
        comment = records.put_line(exif.read_comment(block) or "", records.encode_record(image.record or {}))
        options = save_options(image.metadata) | {"exif": exif.with_comment(block, comment)}
        # Without `exact` the colors below full transparency would be zeroed.
        Image.fromarray(np.asarray(image.samples)).save(path, "WEBP", lossless=True, exact=True, **options)


WEBP = WebP()
