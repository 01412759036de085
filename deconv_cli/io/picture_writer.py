"""Writing PNG, JPEG and WebP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deconv_cli.errors import UsageError
from deconv_cli.io import exif, png_chunks, records
from deconv_cli.io.drafts import Draft, all_texts
from deconv_cli.io.formats import FileFormat
from deconv_cli.io.pictures import COMMENT_START

_MAX_SIDE = {FileFormat.JPEG: 65_500, FileFormat.WEBP: 16_383}
_MAX_SEGMENT = 65_000


def check_size(path: Path, file_format: FileFormat, height: int, width: int) -> None:
    """Refuse a picture that is too large for its format.

    Raises:
        UsageError: a side is longer than the format can say.
    """
    longest = _MAX_SIDE.get(file_format)
    if longest is not None and max(height, width) > longest:
        raise UsageError(
            f"'{path}' cannot hold {height} x {width} pixels, since {file_format} ends at {longest}; choose .tif."
        )


def lost_names(draft: Draft, file_format: FileFormat) -> list[str]:
    """Name what the source says about itself and this format cannot hold."""
    metadata = draft.metadata
    lost = [f"ImageJ {name}" for name in metadata.imagej] + [f"OME {name}" for name in metadata.ome]
    if metadata.resolution and (metadata.resolution.unit == "none" or file_format is FileFormat.WEBP):
        lost.append("resolution")
    if metadata.icc_profile and not draft.same_channels:
        lost.append("ICC profile (it is for other channels)")
    if metadata.white_is_zero:
        lost.append("white-is-zero display")
    if draft.alpha == "associated":
        lost.append("premultiplied alpha (it is now read as unassociated)")
    if file_format is not FileFormat.PNG:
        lost += [f"text {name}" for name in _texts_without_tag(draft, file_format)]
        lost += [f"PNG chunk {name.decode()}" for name, _ in metadata.png_chunks]
    if file_format is FileFormat.JPEG and len(_exif(draft) or b"") > _MAX_SEGMENT:
        lost.append("EXIF (too large for JPEG)")
    return lost


def write_picture(path: Path, file_format: FileFormat, draft: Draft, encoded_record: str) -> None:
    """Write a picture with its record."""
    write: Callable[[Path, Draft, str], None] = {
        FileFormat.PNG: _write_png,
        FileFormat.JPEG: _write_jpeg,
        FileFormat.WEBP: _write_webp,
    }[file_format]
    write(path, draft, encoded_record)


def _write_png(path: Path, draft: Draft, encoded_record: str) -> None:
    import imagecodecs

    metadata = draft.metadata
    chunks = list(metadata.png_chunks)
    profile = _profile(draft)
    per_meter = metadata.resolution.per_meter() if metadata.resolution else None
    if profile:
        chunks.append(png_chunks.profile_chunk(profile))
    if per_meter:
        chunks.append(png_chunks.resolution_chunk(*per_meter))
    if metadata.exif:
        chunks.append((b"eXIf", metadata.exif))
    chunks += [png_chunks.text_chunk(name, text) for name, text in all_texts(metadata).items()]
    chunks.append(png_chunks.text_chunk(records.KEYWORD, encoded_record))
    encoded = bytes(imagecodecs.png_encode(np.ascontiguousarray(draft.array)))
    path.write_bytes(png_chunks.with_chunks(encoded, chunks))


def _write_jpeg(path: Path, draft: Draft, encoded_record: str) -> None:
    import io

    from PIL import Image

    options: dict[str, Any] = {"quality": 95, "subsampling": 0, "icc_profile": _profile(draft)}
    block = _exif(draft)
    if block and len(block) <= _MAX_SEGMENT:
        options["exif"] = exif.with_marker(block)
    if draft.metadata.comment is not None:
        options["comment"] = draft.metadata.comment[:_MAX_SEGMENT]
    per_meter = draft.metadata.resolution.per_meter() if draft.metadata.resolution else None
    if per_meter and max(per_meter) * 0.0254 < 65_535:
        options["dpi"] = tuple(round(value * 0.0254) for value in per_meter)
    buffer = io.BytesIO()
    Image.fromarray(draft.array).save(buffer, "JPEG", **options)
    path.write_bytes(_with_comments(buffer.getvalue(), encoded_record.encode("ascii")))


def _with_comments(encoded: bytes, text: bytes) -> bytes:
    """Put a text of any length behind the leading segments of a JPEG file, in comment segments."""
    place = 2
    # JFIF and EXIF must stay in front of everything else.
    while encoded[place] == 0xFF and 0xE0 <= encoded[place + 1] <= 0xEF:
        place += 2 + int.from_bytes(encoded[place + 2 : place + 4], "big")
    parts = [text[start : start + _MAX_SEGMENT] for start in range(0, len(text), _MAX_SEGMENT)]
    segments = b""
    for part in parts:
        content = COMMENT_START + part
        segments += b"\xff\xfe" + (len(content) + 2).to_bytes(2, "big") + content
    return encoded[:place] + segments + encoded[place:]


def _write_webp(path: Path, draft: Draft, encoded_record: str) -> None:
    from PIL import Image

    block = _exif(draft)
    comment = records.put_line(exif.read_comment(block) or "", encoded_record)
    options: dict[str, Any] = {"exif": exif.with_marker(exif.with_comment(block, comment))}
    profile = _profile(draft)
    if profile:
        options["icc_profile"] = profile
    # Without `exact` the colors below full transparency would be zeroed.
    Image.fromarray(draft.array).save(path, "WEBP", lossless=True, exact=True, **options)


def _profile(draft: Draft) -> bytes | None:
    return draft.metadata.icc_profile if draft.same_channels else None


def _exif(draft: Draft) -> bytes | None:
    return draft.metadata.exif or exif.block_of_texts(draft.metadata.texts)


def _texts_without_tag(draft: Draft, file_format: FileFormat) -> list[str]:
    tagged = set(exif.TEXT_TAGS.values()) | ({"Comment"} if file_format is FileFormat.JPEG else set())
    return [name for name in all_texts(draft.metadata) if name not in tagged]
