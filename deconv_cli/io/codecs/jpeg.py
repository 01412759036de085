"""JPEG by Pillow; the record of a run is a comment of its own."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from deconv_cli.errors import MalformedInputError
from deconv_cli.io import records
from deconv_cli.io.codec import Array, WriteRequest
from deconv_cli.io.codecs.pillow_pictures import PillowCodec, opened_picture, plain_samples, stored_picture
from deconv_cli.io.stored_image import Metadata, StoredImage

_COMMENT = "JPEG comment"
_RECORD_START = b"deconv:"
_MAX_SEGMENT = 65_000
_MAX_DPI = 65_535
_MAX_SCANS = 64
"""An ordinary progressive picture has about ten; each scan goes through all of the picture."""
_MARKER, _RESTART = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]"), re.compile(rb"\xff([\xd0-\xd7])")
"""The marker of a segment, and one of eight by which a decoder may start again within a scan (ITU-T T.81, annex B)."""
_SCAN, _END, _GRAYS = 0xDA, 0xD9, range(126, 131)
_MORE = bytes(range(1, 255))
"""What a decoder that lacks rows takes for the next ones."""


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

        data = path.read_bytes()
        ends = _ends_of_scans(data)
        if len(ends) > _MAX_SCANS:
            raise MalformedInputError(f"'{path}' is a JPEG file of {len(ends)} scans, but an honest one has about ten.")
        with opened_picture(path, JpegImageFile) as image:
            samples, notes = plain_samples(path, image)
            last = image.crop((image.width - 1, image.height - 1, *image.size)).convert("L").getpixel((0, 0))
            if ends and last in _GRAYS and _lacks_rows(data, ends[0], image.size):
                raise MalformedInputError(
                    f"'{path}' promises {image.height} rows, but holds fewer; it is cut short or damaged."
                )
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


def _ends_of_scans(data: bytes) -> list[int]:
    """List the places behind the data of each scan of the first picture."""
    place, ends = 2, list[int]()
    while (found := _MARKER.search(data, place)) and data[found.start() + 1] != _END:
        kind, place = data[found.start() + 1], found.end()
        place += int.from_bytes(data[place : place + 2], "big")
        if kind == _SCAN and (after := _MARKER.search(data, place)):
            ends.append(after.start())
    return ends


def _lacks_rows(data: bytes, end: int, size: tuple[int, int]) -> bool:
    """Tell whether more data at the end of the first scan change the picture: its last rows were made up, of gray."""
    from PIL.JpegImagePlugin import JpegImageFile

    def decoded(content: bytes) -> Array:
        with JpegImageFile(io.BytesIO(content)) as image:
            image.draft("L", (size[0] // 8, size[1] // 8))
            return np.asarray(image)

    restarts = _RESTART.findall(data[:end]) or [b"\xd7"]
    more = _MORE + bytes([0xFF, 0xD0 | (restarts[-1][0] + 1) % 8]) + _MORE
    return not np.array_equal(decoded(data), decoded(data[:end] + more + data[end:]))
