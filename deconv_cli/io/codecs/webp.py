"""WebP by Pillow; the record of a run is a line of the user comment in its EXIF block."""

from __future__ import annotations

from typing import ClassVar

from deconv_cli.io.codec import Array, WriteRequest
from deconv_cli.io.codecs.pillow_pictures import ExifCodec


class WebP(ExifCodec):
    """WebP files, written without loss."""

    name = "WebP"
    suffixes = (".webp",)
    max_side = 16_383
    plugin = "WebPImagePlugin", "WebPImageFile"
    # Without `exact` the colors below full transparency would be zeroed.
    save_arguments: ClassVar = {"lossless": True, "exact": True}

    def recognizes(self, head: bytes) -> bool:
        """Look for the kind of RIFF file."""
        return head[:4] == b"RIFF" and head[8:12] == b"WEBP"

    def alpha_refusal(self, request: WriteRequest, alpha: Array) -> str | None:
        """Say why the alpha channel cannot be written; None if it can."""
        is_opaque = bool((alpha == 255).all())
        return "it is opaque everywhere, which WebP does not store" if is_opaque else None


WEBP = WebP()
