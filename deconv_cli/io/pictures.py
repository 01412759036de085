"""Reading PNG, JPEG and WebP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deconv_cli.errors import MalformedInputError, TooLargeError
from deconv_cli.io import exif, limits, records
from deconv_cli.io.contents import Contents, Metadata, Resolution
from deconv_cli.io.formats import FileFormat
from deconv_cli.io.png_chunks import COPIED, HANDLED, PngHeader, read_chunks, read_header
from deconv_cli.io.sources import refusing_damage

if TYPE_CHECKING:
    from PIL.Image import Image

_BYTES_PER_PIXEL = 4
COMMENT_START = b"deconv:"


def read_picture(path: Path, file_format: FileFormat) -> Contents:
    """Read a PNG, JPEG or WebP file.

    Raises:
        MalformedInputError: damaged, animated, or in a color model that is not understood.
        TooLargeError: larger than the memory allows, or a decompression bomb.
    """
    limits.check_budget(path, path.stat().st_size)
    if file_format is FileFormat.PNG:
        return _read_png(path)
    with _opened(path, file_format) as image:
        samples, notes = _plain_samples(path, image)
        block = exif.without_marker(image.info.get("exif"))
        comments = _comments(image)
        return Contents(
            samples=samples,
            axes="YX" if samples.ndim == 2 else "YXS",
            dtype="uint8",
            metadata=_metadata(image, block, comments),
            record=_record(file_format, block, comments),
            alpha="unassociated" if samples.ndim == 3 and samples.shape[2] in (2, 4) else None,
            orientation=exif.read_orientation(block),
            notes=notes,
        )


def _read_png(path: Path) -> Contents:
    data = path.read_bytes()
    chunks = read_chunks(path, data)
    header = read_header(path, chunks)
    limits.check_expansion(path, header.n_decoded_bytes, len(data))
    with _opened(path, FileFormat.PNG) as image:
        samples, notes = (_sixteen_bits(data), ()) if header.bit_depth == 16 else _plain_samples(path, image, header)
        block = exif.without_marker(image.info.get("exif"))
        texts = {str(key): str(text) for key, text in getattr(image, "text", {}).items()}
        record = records.decode_record(texts.pop(records.KEYWORD, None))
        metadata = _metadata(image, block, [])
    unknown = sorted({name.decode("latin-1") for name, _ in chunks} - {name.decode() for name in HANDLED})
    found = {
        **metadata.__dict__,
        "texts": {**metadata.texts, **texts},
        "png_chunks": tuple((name, content) for name, content in chunks if name in COPIED),
        "unsupported": (*metadata.unsupported, *(f"PNG chunk {name}" for name in unknown)),
    }
    return Contents(
        samples=samples,
        axes="YX" if samples.ndim == 2 else "YXS",
        dtype=samples.dtype.name,
        metadata=Metadata(**found),
        record=record,
        alpha="unassociated" if samples.ndim == 3 and samples.shape[2] in (2, 4) else None,
        orientation=exif.read_orientation(block),
        notes=notes,
    )


def _sixteen_bits(data: bytes) -> npt.NDArray[np.generic]:
    # Pillow opens 16-bit colors as 8-bit ones without a word.
    import imagecodecs

    decoded: npt.NDArray[np.generic] = imagecodecs.png_decode(data)
    return decoded


@contextmanager
def _opened(path: Path, file_format: FileFormat) -> Iterator[Image]:
    from PIL import Image, UnidentifiedImageError

    pixels_before = Image.MAX_IMAGE_PIXELS
    try:
        # Pillow's own limit is a constant; ours follows from the memory of this machine.
        Image.MAX_IMAGE_PIXELS = limits.memory_budget() // _BYTES_PER_PIXEL
        with refusing_damage(path, f"a {file_format} file"):
            try:
                with Image.open(path, formats=[file_format.value.upper()]) as image:
                    _check_before_decoding(path, image)
                    image.load()
                    yield image
            except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
                raise TooLargeError(
                    f"'{path}' has more pixels than half of the memory holds; crop it first."
                ) from error
            except UnidentifiedImageError as error:
                raise MalformedInputError(
                    f"'{path}' starts as a {file_format} file, but goes on as none; copy or export it again."
                ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = pixels_before


def _check_before_decoding(path: Path, image: Image) -> None:
    limits.check_expansion(path, image.width * image.height * _BYTES_PER_PIXEL, path.stat().st_size)
    n_frames = getattr(image, "n_frames", 1)
    if n_frames > 1:
        raise MalformedInputError(
            f"'{path}' should be one picture, but is an animation of {n_frames} frames; export the frames as a "
            "TIFF stack."
        )


def _plain_samples(
    path: Path, image: Image, header: PngHeader | None = None
) -> tuple[npt.NDArray[np.generic], tuple[str, ...]]:
    """Take 8-bit gray, gray with alpha, RGB or RGBA samples out of an opened picture."""
    mode = image.mode
    notes: tuple[str, ...] = ()
    if mode == "CMYK":
        raise MalformedInputError(f"'{path}' should be gray or RGB, but is CMYK; convert it to RGB first.")
    transparent = "transparency" in image.info
    if mode in ("P", "PA"):
        target, notes = ("RGBA" if transparent or mode == "PA" else "RGB"), ("the palette was expanded to colors",)
    elif mode == "1":
        target, notes = "L", ("black and white were read as 0 and 255",)
    elif mode in ("L", "RGB") and transparent:
        target, notes = ("LA" if mode == "L" else "RGBA"), ("the transparent color was read as an alpha channel",)
    elif mode in ("L", "LA", "RGB", "RGBA"):
        target = mode
    else:
        raise MalformedInputError(f"'{path}' should be gray or RGB, but its pixels are of kind {mode}.")
    if header is not None and header.color_type == 0 and header.bit_depth in (2, 4):
        notes = (*notes, f"{header.bit_depth}-bit gray was read as 0 to 255")
    return np.asarray(image if target == mode else image.convert(target)), notes


def _metadata(image: Image, block: bytes | None, comments: list[bytes]) -> Metadata:
    others = [text for text in comments if not text.startswith(COMMENT_START)]
    unsupported = [name for name, key in (("XMP", "xmp"), ("Photoshop", "photoshop")) if image.info.get(key)]
    return Metadata(
        resolution=_resolution(image.info.get("dpi")),
        icc_profile=image.info.get("icc_profile") or None,
        exif=exif.upright(block) if block else None,
        texts=exif.read_texts(block),
        comment=others[-1] if others else None,
        unsupported=tuple(unsupported),
    )


def _resolution(dpi: Any) -> Resolution | None:  # noqa: ANN401
    if not isinstance(dpi, tuple) or len(dpi) != 2 or not all(0 < float(value) < 1e9 for value in dpi):
        return None
    x, y = (Fraction(float(value)).limit_denominator(10_000) for value in dpi)
    return Resolution(x, y, "inch") if x and y else None


def _comments(image: Image) -> list[bytes]:
    return [content for name, content in getattr(image, "applist", []) if name == "COM"]


def _record(file_format: FileFormat, block: bytes | None, comments: list[bytes]) -> dict[str, Any] | None:
    if file_format is FileFormat.WEBP:
        return records.take_line(exif.read_comment(block))
    parts = [text.removeprefix(COMMENT_START) for text in comments if text.startswith(COMMENT_START)]
    return records.decode_record(b"".join(parts).decode("utf-8", "replace")) if parts else None
