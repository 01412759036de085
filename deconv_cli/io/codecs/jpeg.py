"""JPEG by Pillow; the record of a run is a comment of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from deconv_cli.errors import MalformedInputError
from deconv_cli.io import records
from deconv_cli.io.codec import WriteRequest
from deconv_cli.io.codecs.pillow_pictures import PillowCodec, opened_picture, plain_samples, stored_picture
from deconv_cli.io.stored_image import Metadata, StoredImage

_COMMENT = "JPEG comment"
_RECORD_START = b"deconv:"
_MAX_SEGMENT = 65_000
_MAX_DPI = 65_535
_MAX_SCANS = 64
"""An ordinary progressive picture has about ten; each scan goes through all of the picture."""


class Jpeg(PillowCodec):
    """JPEG files, written of quality 95, with colors of full resolution."""

    name = "JPEG"
    suffixes = (".jpg", ".jpeg")
    magic = (b"\xff\xd8\xff",)
    is_lossless = False
    record_inside = True
    carries = frozenset({"resolution", "icc_profile", "exif"})
    max_side = 65_500
    save_arguments: ClassVar = {"quality": 95, "subsampling": 0}

    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read a picture."""
        from PIL.JpegImagePlugin import JpegImageFile

        _check_scans(path)
        with opened_picture(path, JpegImageFile) as image:
            samples, notes = plain_samples(path, image)
            if "mp" in image.info:
                notes = (*notes, "the file holds further pictures after the first, which were not read")
            comments = [content for name, content in image.applist if name == "COM"]
            found = [text.removeprefix(_RECORD_START) for text in comments if text.startswith(_RECORD_START)]
            others = [text for text in comments if not text.startswith(_RECORD_START)]
            record = records.decode_record(found[-1].decode("utf-8", "replace")) if found else None
            own = Metadata(native={_COMMENT: others[-1]} if others else {})
            stored = stored_picture(image, samples, notes, record, own)
            tables = image.quantization
            return replace(stored, jpeg_table=tuple(tables[min(tables)]) if tables else None)

    def carry(self, request: WriteRequest, image: StoredImage) -> tuple[Metadata, list[str]]:
        """Choose the metadata; some are too large for the format."""
        kept, lost = super().carry(request, image)
        if kept.exif and len(kept.exif) > _MAX_SEGMENT:
            kept, lost = replace(kept, exif=None), [*lost, "EXIF (too large for JPEG)"]
        per_inch = kept.resolution.per("inch") if kept.resolution else None
        if per_inch and not 1 <= min(per_inch.x, per_inch.y) <= max(per_inch.x, per_inch.y) < _MAX_DPI:
            kept, lost = replace(kept, resolution=None), [*lost, "resolution (JPEG has 1 to 65535 dots per inch)"]
        return kept, lost

    def metadata_arguments(self, image: StoredImage) -> dict[str, Any]:
        """Give Pillow's arguments, with the record in a comment of its own."""
        options = super().metadata_arguments(image)
        if "dpi" in options:
            options["dpi"] = tuple(round(value) for value in options["dpi"])
        text = _RECORD_START + records.encode_record(image.record or {}).encode("ascii")
        segment = b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text
        return options | {"comment": image.metadata.native.get(_COMMENT, b"")[:_MAX_SEGMENT], "extra": segment}


JPEG = Jpeg()


def _check_scans(path: Path) -> None:
    """Refuse a picture of very many scans: a small file of them is decoded for minutes."""
    data = path.read_bytes()
    # Two bytes that look like the start of a scan turn up by chance in a thumbnail or a profile.
    n_scans = data.count(b"\xff\xda")
    if n_scans > _MAX_SCANS + len(data) // 16_384:
        raise MalformedInputError(f"'{path}' is a JPEG file of {n_scans} scans, but an honest one has about ten.")
