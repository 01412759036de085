"""Which file formats there are, how one is told from its first bytes, and what each can hold."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from deconv_cli.errors import MalformedInputError, UsageError


class FileFormat(StrEnum):
    """A family of files that one codec reads."""

    TIFF = "TIFF"
    PNG = "PNG"
    JPEG = "JPEG"
    WEBP = "WebP"
    TORCH = "PyTorch"
    SAFETENSORS = "safetensors"
    NPY = "NumPy .npy"
    NPZ = "NumPy .npz"

    @property
    def is_picture(self) -> bool:
        """True for files that a viewer shows."""
        return self in (FileFormat.TIFF, FileFormat.PNG, FileFormat.JPEG, FileFormat.WEBP)

    @property
    def is_display_only(self) -> bool:
        """True for formats of one plane of whole numbers, gray or RGB."""
        return self in (FileFormat.PNG, FileFormat.JPEG, FileFormat.WEBP)


SUFFIXES = {
    ".tif": FileFormat.TIFF,
    ".tiff": FileFormat.TIFF,
    ".png": FileFormat.PNG,
    ".jpg": FileFormat.JPEG,
    ".jpeg": FileFormat.JPEG,
    ".webp": FileFormat.WEBP,
    ".pt": FileFormat.TORCH,
    ".safetensors": FileFormat.SAFETENSORS,
    ".npy": FileFormat.NPY,
    ".npz": FileFormat.NPZ,
}

SIDECAR_FORMATS = (FileFormat.TORCH, FileFormat.NPY, FileFormat.NPZ)
"""Formats that hold the bare tensor, with the record in a file beside it."""

UNDERSTOOD = "TIFF, PNG, JPEG, WebP, .pt, .safetensors, .npy and .npz"

DISPLAY_DTYPES = {
    FileFormat.PNG: ("uint8", "uint16"),
    FileFormat.JPEG: ("uint8",),
    FileFormat.WEBP: ("uint8",),
}
"""Sample types of the formats that hold whole numbers only."""

_TIFF_MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


def format_of_suffix(path: Path) -> FileFormat:
    """Tell the format of a file to be written from its name.

    Raises:
        UsageError: the suffix belongs to no format that is written.
    """
    found = SUFFIXES.get(path.suffix.lower())
    if found is None:
        known = " ".join(SUFFIXES)
        raise UsageError(f"'{path}' should end in one of {known} (or .ome.tif) so that its format is known.")
    return found


def is_ome_name(path: Path) -> bool:
    """Tell whether a name asks for OME-TIFF."""
    return path.name.lower().endswith((".ome.tif", ".ome.tiff"))


def format_of_content(path: Path, head: bytes) -> FileFormat:
    """Tell the format of a file from its first bytes; the suffix only decides between kinds of archive.

    Args:
        path: named in the error, and asked for its suffix where archives look alike.
        head: at least the first 16 bytes of the file, fewer if it is shorter.

    Raises:
        MalformedInputError: no known format starts like this.
    """
    found = _format_of_magic(path, head)
    if found is None:
        raise MalformedInputError(f"'{path}' is not one of the files understood here: {UNDERSTOOD}.")
    return found


def _format_of_magic(path: Path, head: bytes) -> FileFormat | None:
    if head.startswith(_TIFF_MAGIC):
        return FileFormat.TIFF
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return FileFormat.PNG
    if head.startswith(b"\xff\xd8\xff"):
        return FileFormat.JPEG
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return FileFormat.WEBP
    if head.startswith(b"\x93NUMPY"):
        return FileFormat.NPY
    if head.startswith(b"PK\x03\x04"):
        return FileFormat.NPZ if path.suffix.lower() == ".npz" else FileFormat.TORCH
    if head.startswith(b"\x80") and path.suffix.lower() in (".pt", ".pth"):
        return FileFormat.TORCH
    if len(head) > 9 and head[8:9] == b"{" and head[6:8] == b"\x00\x00":
        return FileFormat.SAFETENSORS
    return None


def suffix_note(path: Path, content: FileFormat) -> tuple[str, ...]:
    """Say so where the name of a file promises another format than its content is."""
    promised = SUFFIXES.get(path.suffix.lower())
    if promised is None or promised == content:
        return ()
    return (f"the name ends in {path.suffix}, but the content is {content} and was read as such",)
