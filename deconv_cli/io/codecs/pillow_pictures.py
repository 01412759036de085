"""What PNG, JPEG and others have in common, and BMP, GIF, WebP and AVIF: Pillow opens them once their size is known."""

from __future__ import annotations

import importlib
import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from deconv_cli.errors import MalformedInputError
from deconv_cli.io import exif, limits
from deconv_cli.io.codec import Array, Codec, PictureCodec, WriteRequest
from deconv_cli.io.stored_image import Metadata, Resolution, StoredImage

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile


Picture = TypeVar("Picture", bound="ImageFile")

_BYTES_PER_PIXEL = 3
_STRIP = 2**20
"""Pixels that are taken over at a time, since Pillow hands over two copies."""
_NONE = Metadata()
_NEVER_CARRIED = {"XMP": "xmp", "Photoshop": "photoshop"}


class PillowCodec(PictureCodec):
    """A format of 8 bits that Pillow reads and writes."""

    dtypes = ("uint8",)
    plugin: tuple[str, str]
    """Pillow's module of the format, and the class of its files in it."""
    save_arguments: ClassVar[Mapping[str, Any]] = {}
    """Pillow's arguments for every picture that is written."""

    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read a picture."""
        module, kind = self.plugin
        with opened_picture(path, getattr(importlib.import_module(f"PIL.{module}"), kind)) as image:
            return stored_picture(image, *plain_samples(path, image))

    def write(self, path: Path, image: StoredImage) -> None:
        """Write a picture."""
        from PIL import Image

        options = {**self.save_arguments, **self.metadata_arguments(image)}
        Image.fromarray(np.asarray(image.samples)).save(path, self.name, **options)

    def metadata_arguments(self, image: StoredImage) -> dict[str, Any]:
        """Give Pillow's arguments for the metadata of a picture, and for the record of the run."""
        return save_options(image.metadata)


class ExifCodec(PillowCodec):
    """A format in whose EXIF block the record of a run goes."""

    record_inside = True
    holds_alpha = True
    holds_gray = False
    carries = frozenset({"icc_profile", "exif"})

    def metadata_arguments(self, image: StoredImage) -> dict[str, Any]:
        """Give Pillow's arguments, among them the EXIF block with the record."""
        return super().metadata_arguments(image) | {"exif": exif.put_record(image.metadata.exif, image.record or {})}


@contextmanager
def opened_picture(path: Path, kind: type[Picture]) -> Iterator[Picture]:
    """Open a picture by the class of its format, and decode it once its size has been checked."""
    n_bytes = path.stat().st_size
    limits.check_budget(path, n_bytes)
    # Not by Image.open: it hides why a file was refused, and its limit of pixels is a constant.
    with path.open("rb") as stream, kind(stream) as image:
        limits.check_expansion(path, image.width * image.height * _BYTES_PER_PIXEL, n_bytes)
        n_frames = getattr(image, "n_frames", 1)
        if n_frames > 1:
            raise MalformedInputError(
                f"'{path}' should be one picture, but is an animation of {n_frames} frames; export the frames as a "
                "TIFF stack."
            )
        image.load()
        yield image


def plain_samples(path: Path, image: Image) -> tuple[Array, tuple[str, ...]]:
    """Take 8-bit gray, gray with alpha, RGB or RGBA samples, (H, W) or (H, W, S), out of an opened picture.

    Returns:
        The samples, and what was done to them.
    """
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
    image = image if target == mode else image.convert(target)
    samples = np.empty((image.height, image.width, *([len(target)] if target != "L" else [])), np.uint8)
    n_rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, n_rows):
        end = min(top + n_rows, image.height)
        samples[top:end] = np.asarray(image.crop((0, top, image.width, end)))
    return samples, notes


def stored_picture(
    image: Image, samples: Array, notes: tuple[str, ...], record: dict[str, Any] | None = None, own: Metadata = _NONE
) -> StoredImage:
    """Gather samples and notes with the metadata of all these formats, `own`, those of one, and the record.

    A record that is not given is looked for in the EXIF block.
    """
    inside, block = exif.take_record(exif.with_marker(image.info.get("exif")))
    return StoredImage(
        samples=samples,
        axes="YX" if samples.ndim == 2 else "YXS",
        metadata=replace(
            own,
            resolution=_resolution(image.info.get("dpi")),
            icc_profile=image.info.get("icc_profile") or None,
            exif=exif.upright(block) if block else None,
            unsupported=(*own.unsupported, *(name for name, key in _NEVER_CARRIED.items() if image.info.get(key))),
        ),
        record=record or inside,
        alpha="unassociated" if samples.ndim == 3 and samples.shape[2] in (2, 4) else None,
        orientation=exif.read_orientation(block),
        notes=notes,
    )


def save_options(metadata: Metadata) -> dict[str, Any]:
    """Give Pillow's arguments for the metadata that all these formats have."""
    options: dict[str, Any] = {"icc_profile": metadata.icc_profile, "exif": metadata.exif}
    if metadata.resolution:
        per_inch = metadata.resolution.per("inch")
        options["dpi"] = (float(per_inch.x), float(per_inch.y))
    return {name: value for name, value in options.items() if value}


def _resolution(dpi: Any) -> Resolution | None:  # noqa: ANN401
    if not isinstance(dpi, tuple) or len(dpi) != 2 or not all(0 < float(value) < 1e9 for value in dpi):
        return None
    x, y = (Fraction(float(value)).limit_denominator(10_000) for value in dpi)
    return Resolution(x, y, "inch") if x and y else None


class Bmp(PillowCodec):
    """Windows bitmaps."""

    name = "BMP"
    suffixes = (".bmp",)
    magic = (b"BM",)
    carries = frozenset({"resolution"})
    plugin = "BmpImagePlugin", "BmpImageFile"


BMP = Bmp()


class Gif(PillowCodec):
    """GIF files of one frame, which are only read: 256 colors would spoil a result."""

    name = "GIF"
    suffixes = (".gif",)
    magic = (b"GIF87a", b"GIF89a")
    dtypes = ("uint8",)
    plugin = "GifImagePlugin", "GifImageFile"
    write = Codec.write


GIF = Gif()


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
