"""Which codec is for a file: recognized by its first bytes on reading, by its suffix on writing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.io.codec import Codec
from deconv_cli.io.hidden_names import is_in_parts
from deconv_cli.parts import CODECS

_RAW_SUFFIXES = (".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".pef", ".srw")
"""Of files that cameras write; most begin as TIFF does, and the rest is known to few."""

_HEIC = tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1"))
"""What stands behind the first four bytes of such photographs."""


def all_codecs() -> Iterator[Codec]:
    """Go through all codecs, those of the caller last."""
    for name in CODECS:
        codec: Codec = CODECS[name]
        yield codec


def codec_named(path: Path) -> Codec | None:
    """Find the codec whose suffix a name has, or None."""
    return next((codec for codec in all_codecs() if path.name.lower().endswith(codec.suffixes)), None)


def codec_of_suffix(path: Path) -> Codec:
    """Find the codec for a file to be written by its name.

    Raises:
        UsageError: the suffix belongs to no format, or to one that is only read.
    """
    found = codec_named(path)
    if found is not None and found.is_read_only:
        raise found.read_only_refusal(path)
    if found is None:
        known = " ".join(suffix for codec in all_codecs() if not codec.is_read_only for suffix in codec.suffixes)
        raise UsageError(f"'{path}' should end in one of {known} (or .ome.tif) so that its format is known.")
    return found


def codec_of_content(path: Path, head: bytes) -> Codec:
    """Find the codec for a file by its first 32 bytes; the suffix decides where several formats begin alike.

    Raises:
        MalformedInputError: no known format starts like this, a raw file of a camera, a HEIC photograph, or a result in
            the making.
    """
    if is_in_parts(path):
        raise MalformedInputError(
            f"'{path}' is a result in the making, of which parts are missing; go on with the run that began it."
        )
    if path.suffix.lower() in _RAW_SUFFIXES or head[8:10] == b"CR":
        raise MalformedInputError(
            f"'{path}' is a raw file of a camera, which is not developed here; develop it into a 16-bit TIFF first."
        )
    promised = codec_named(path)
    # Anything may be packed by gzip: its name tells what.
    is_packed = head.startswith(b"\x1f\x8b")
    found = [codec for codec in all_codecs() if codec.recognizes(head) and (codec is promised or not is_packed)]
    if not found:
        if head[4:12] in _HEIC:
            raise MalformedInputError(
                f"'{path}' is a HEIC photograph, as phones write them, which is not read here; export it as JPEG first."
            )
        *names, last = (codec.name for codec in all_codecs())
        raise MalformedInputError(f"'{path}' is not one of the files understood here: {', '.join(names)} and {last}.")
    return promised if promised is not None and promised in found else found[0]


def suffix_note(path: Path, codec: Codec) -> tuple[str, ...]:
    """Say so where the name of a file promises another format than its content is."""
    promised = codec_named(path)
    if promised is None or promised is codec:
        return ()
    return (f"the name ends in {path.suffix}, but the content is {codec.name} and was read as such",)
