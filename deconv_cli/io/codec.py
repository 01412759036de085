"""File formats: a codec is a subclass, listed in `parts.CODECS`, and is found by the content or the name of a file."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.io.atomic import is_in_parts
from deconv_cli.io.layout import Array, Layout, Samples, dtype_name
from deconv_cli.io.metadata import Metadata
from deconv_cli.io.region_arrays import RegionSource, RegionTarget
from deconv_cli.parts import CODECS
from deconv_cli.vocabulary import OutputDType

_SHARED = {"density": "resolution", "icc_profile": "ICC profile", "exif": "EXIF", "channel_names": "channel names"}
"""Fields of `Metadata` that several formats can hold, with their names in notes."""
_RAW_SUFFIXES = (".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".pef", ".srw")
"""Of files that cameras write; most begin as TIFF does, and the rest is known to few."""
ALPHA_NOTE = "the alpha channel was not read"
PREMULTIPLIED_NOTE = "the colors are premultiplied by alpha and were used as stored"
_HEIC = tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1"))
"""Bytes 4 to 12 of HEIC photographs."""


@dataclass(frozen=True, eq=False)
class StoredImage:
    """One array as a file stores it, which a codec reads or writes."""

    samples: Samples
    """As stored, of shape `shape`, in native byte order, without alpha."""
    axes: str = ""
    """One letter for each axis: Y and X the plane, C and S channels, others batch; empty where the file names none."""
    metadata: Metadata = field(default_factory=Metadata)
    record: dict[str, Any] | None = None
    """Of the run that wrote the file, or of the run that writes it."""
    orientation: int = 1
    """EXIF orientation, 1 to 8."""
    notes: tuple[str, ...] = ()
    """On changes to the samples, a sentence each."""
    jpeg_table: tuple[int, ...] | None = None
    """The 64 divisors of a JPEG's luma coefficients, row by row from the lowest frequency."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape as stored."""
        return tuple(int(size) for size in self.samples.shape)

    @property
    def dtype(self) -> str:
        """The sample type by its NumPy name."""
        return dtype_name(self.samples)


def pyramid_notes(n_smaller: int) -> tuple[str, ...]:
    """Note that a file holds the same image at smaller resolutions too."""
    if not n_smaller:
        return ()
    return (f"the file is a pyramid: only its full resolution was read (smaller levels: {n_smaller})",)


def is_opaque(alpha: Array) -> bool:
    """Check whether all samples of an alpha channel are the largest of their type; 1 for floats."""
    return bool(np.all(alpha == (1 if alpha.dtype.kind in "fb" else np.iinfo(alpha.dtype.name).max)))


def zeros_of(shape: tuple[int, ...], dtype: np.dtype[Any] | str) -> Array:
    """Make an array of zeros that takes the memory of one sample, as a placeholder."""
    return np.broadcast_to(np.zeros((), dtype), shape)


@dataclass(frozen=True)
class WriteRequest:
    """A file to be written, as far as it is known before the computation."""

    path: Path
    dtype: str
    """NumPy name of the sample type."""
    n_channels: int
    layout: Layout
    """Of the image that the result is computed from."""
    source_format: str
    """Name of that image's format."""
    from_picture: bool
    flavor: str
    """`Metadata.flavor` of that image."""

    def layout_of_result(self, n_channels: int, size: Sequence[int]) -> Layout:
        """Compute the layout of a result of `n_channels` and this size in space, in the order of the source."""
        return self.layout.with_channels(n_channels).resized_space(size)


class Codec(ABC):
    """One file format: its recognition, reading and writing, and its limits.

    A subclass sets the attributes that differ from these, and imports its library inside of its methods, so that
    suffixes and first bytes are known before any library is loaded.
    """

    name: str
    """As messages call the format."""
    suffixes: tuple[str, ...]
    """In lower case; they decide the format of files to be written."""
    magic: tuple[bytes, ...] = ()
    """First bytes of its files, any of these."""
    magic_at: int = 0
    """Number of bytes before them."""
    is_picture: bool = True
    """True for files that a viewer shows, False for files of named tensors."""
    dtypes: tuple[str, ...] = tuple(OutputDType)
    """Sample types that can be written."""
    is_folder: bool = False
    """True where one of its files is a folder to the system."""
    is_lossless: bool = True
    """True where samples are read back exactly as they were written."""
    record_inside: bool = False
    """True where `write` puts the record of the run into the file; else it goes into `NAME.npy.json`."""
    has_short_record: bool = False
    """True where that record holds only settings and the kernel, as files that are passed on do."""
    carries: frozenset[str] = frozenset()
    """Which of `density`, `icc_profile`, `exif` and `channel_names` it can hold."""
    selects: str | None = None
    """`tensor` or `series` where a file may hold several arrays, which are chosen by name or number."""

    @property
    def is_read_only(self) -> bool:
        """True where files are read and never written."""
        return type(self).write is Codec.write

    @property
    def holds_whole_numbers_only(self) -> bool:
        """True where no fractions can be written; such formats are made for display, and sRGB by default."""
        return OutputDType.FLOAT32 not in self.dtypes

    def recognizes(self, head: bytes) -> bool:
        """Check whether a file is of this format by its first 32 bytes; fewer if it is shorter."""
        return head[self.magic_at :].startswith(self.magic)

    @abstractmethod
    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read a file, or the array called `member` of it; any error counts as damage."""

    def read_header(self, path: Path, member: str | int | None = None) -> StoredImage | RegionSource:
        """Read the shape and the record of an array, without its samples where the format allows that."""
        return self.open_regions(path, member) if self.opens_regions else self.read(path, member)

    def check(self, request: WriteRequest) -> None:  # noqa: B027
        """Refuse by `UsageError` results that the format cannot hold, before anything is computed."""

    def order_axes(self, request: WriteRequest, layout: Layout) -> tuple[Layout, str, tuple[str, ...]]:
        """Order the axes of a result as the file stores them; return their new letters, and notes on these, too."""
        return layout, layout.axes, ()

    def arrange(self, request: WriteRequest, samples: Array) -> StoredImage:
        """Order the samples of a result, shape (B, C, *space), as the file stores them."""
        layout = request.layout_of_result(samples.shape[1], samples.shape[2:])
        layout, axes, notes = self.order_axes(request, layout)
        return StoredImage(from_images(layout, samples), axes, notes=notes)

    def choose_metadata(self, request: WriteRequest, image: StoredImage) -> tuple[Metadata, list[str]]:
        """Choose the metadata of an image that the file can hold; return the names of all other fields, too."""
        kept, lost = image.metadata, list(image.metadata.unsupported)
        if request.n_channels != request.layout.n_channels:
            lost += ["ICC profile (it is for other channels)"] if kept.icc_profile else []
            lost += ["channel names"] if kept.channel_names else []
            lost += kept.native_of_channels
            kept = replace(kept, icc_profile=None, channel_names=(), native_of_channels={})
        for name, label in _SHARED.items():
            if name not in self.carries and getattr(kept, name):
                lost.append(label)
                kept = replace(kept, **{name: getattr(Metadata(), name)})
        if request.source_format != self.name:
            lost += [*kept.native, *kept.native_of_channels]
            kept = replace(kept, native={}, native_of_channels={})
        return kept, lost

    def describe_result(self, request: WriteRequest, layout: Layout, metadata: Metadata) -> StoredImage:
        """Describe a result before it is computed: its axes, its metadata, and notes on both; its samples are zeros."""
        layout, axes, notes = self.order_axes(request, layout)
        return self.with_metadata(
            request, StoredImage(zeros_of(layout.sizes, request.dtype), axes, notes=notes), metadata
        )

    def with_metadata(self, request: WriteRequest, image: StoredImage, metadata: Metadata) -> StoredImage:
        """Add the metadata that the file can hold to an image, and a note on all other fields."""
        kept, lost = self.choose_metadata(request, replace(image, metadata=metadata))
        notes = (f"not carried over: {', '.join(dict.fromkeys(lost))}",) if lost else ()
        return replace(image, metadata=kept, notes=(*image.notes, *notes))

    def write(self, path: Path, image: StoredImage) -> None:
        """Write a file, with the record of the run where the format takes one; formats without this are only read."""
        raise NotImplementedError

    def open_regions(self, path: Path, member: str | int | None) -> RegionSource:
        """Open a file, or the array called `member` of it, to be read by parts, in formats that allow it.

        Raises:
            UsageError: no such array, or a format that is only read as a whole.
            InputRefusedError: damaged, unsafe, or stored in a way that cannot be read by parts.
        """
        wanted = list_formats(codec for codec in all_codecs() if codec.opens_regions)
        raise UsageError(
            f"'{path}' is a {self.name} file, which can only be read as a whole; to read it by parts, convert it to "
            f"{wanted}."
        )

    def plan_regions(self, request: WriteRequest, layout: Layout, source: RegionSource) -> RegionTarget:
        """Decide how a result of this layout is written by parts, in formats that allow it; nothing is written yet.

        The result keeps the metadata of `source`. A format that is only written as a whole raises a `UsageError`.
        """
        wanted = list_formats(c for c in all_codecs() if type(c).plan_regions is not Codec.plan_regions)
        raise UsageError(
            f"'{request.path}' cannot be written by parts, since {self.name} files are written as a whole; choose a "
            f"name for {wanted}."
        )

    @property
    def opens_regions(self) -> bool:
        """True where files are read a part at a time."""
        return type(self).open_regions is not Codec.open_regions


class PictureCodec(Codec):
    """A format of one plane, gray or in colors."""

    channel_counts: tuple[int, ...] = (1, 3)
    """How many channels it can hold."""
    holds_gray: bool = True
    """False where gray is written as equal red, green and blue."""
    has_short_record = True
    max_side: int | None = None
    """The largest height or width in pixels."""

    def check(self, request: WriteRequest) -> None:
        """Refuse several planes, and channels that are neither gray nor colors."""
        layout = request.layout
        if layout.dimensions == 1:
            raise signals_refusal(self, request)
        n_planes = layout.n_batch * math.prod(layout.sizes[layout.axes.index(a)] for a in layout.space[:-2])
        if n_planes != 1:
            raise UsageError(
                f"'{request.path}' cannot hold {n_planes} planes, since {self.name} holds one; choose .tif."
            )
        if request.n_channels not in self.channel_counts:
            held = " or ".join(str(count) for count in self.channel_counts)
            raise UsageError(
                f"'{request.path}' cannot hold {request.n_channels} channels, since {self.name} holds {held}; choose "
                ".tif, .pt, .safetensors or .npy."
            )

    def arrange(self, request: WriteRequest, samples: Array) -> StoredImage:
        """Put the channels last, as libraries for pictures want them; refuse sides that are too long."""
        height, width = samples.shape[-2:]
        if self.max_side is not None and max(height, width) > self.max_side:
            raise UsageError(
                f"'{request.path}' cannot hold {height} x {width} pixels, since {self.name} ends at {self.max_side}; "
                "choose .tif."
            )
        planes = samples.reshape(-1, height, width)
        notes: tuple[str, ...] = ()
        if len(planes) == 1 and not self.holds_gray:
            planes = np.repeat(planes, 3, axis=0)
            notes = (f"{self.name} has no gray, so the plane was written as equal red, green and blue",)
        if len(planes) == 1:
            return StoredImage(planes[0], "YX")
        return StoredImage(np.ascontiguousarray(np.moveaxis(planes, 0, -1)), "YXS", notes=notes)

    def choose_metadata(self, request: WriteRequest, image: StoredImage) -> tuple[Metadata, list[str]]:
        """Choose the metadata; only TIFF holds a resolution without a unit."""
        kept, lost = super().choose_metadata(request, image)
        if kept.density and not kept.density.unit:
            kept, lost = replace(kept, density=None), [*lost, "resolution"]
        return kept, lost


def from_images(layout: Layout, samples: Array) -> Array:
    """Order samples of shape (B, C, *space) as a layout stores them."""
    import torch

    ordered: Array = layout.from_images(torch.from_numpy(np.ascontiguousarray(samples))).numpy()
    return ordered


def signals_refusal(codec: Codec, request: WriteRequest) -> UsageError:
    """Explain that a format of pictures does not hold signals."""
    return UsageError(
        f"'{request.path}' cannot hold signals of one axis, since {codec.name} holds pictures; choose .npy, .pt or "
        ".safetensors."
    )


def all_codecs() -> Iterator[Codec]:
    """List all codecs, those of the caller last."""
    for name in CODECS:
        codec: Codec = CODECS[name]
        yield codec


def list_formats(codecs: Iterable[Codec]) -> str:
    """List formats with their suffixes."""
    *names, last = (f"{codec.name} ({codec.suffixes[0]})" for codec in codecs)
    return f"{', '.join(names)} or {last}"


def codec_named(path: Path) -> Codec | None:
    """Find the codec by the suffix of a name; `None` if no codec has it."""
    return next((codec for codec in all_codecs() if path.name.lower().endswith(codec.suffixes)), None)


def codec_of_suffix(path: Path) -> Codec:
    """Find the codec of an output by its name; raises `UsageError` for unknown and read-only formats."""
    found = codec_named(path)
    if str(path) == "-":
        raise UsageError("deconv writes no picture to stdout; name a file instead of '-'.")
    if found is None:
        known = " ".join(suffix for codec in all_codecs() if not codec.is_read_only for suffix in codec.suffixes)
        raise UsageError(f"'{path}' should end in one of {known} (or .ome.tif) so that its format is known.")
    if found.is_read_only:
        raise UsageError(
            f"'{path}' cannot be written, since deconv only reads {found.name} files; choose .png or .tif."
        )
    return found


def codec_of_content(path: Path, head: bytes) -> Codec:
    """Find the codec for a file by its first 32 bytes; the suffix decides where several formats begin alike.

    Raises:
        MalformedInputError: an unknown format, a raw file of a camera, a HEIC photograph, or an unfinished result.
    """
    if is_in_parts(path):
        raise MalformedInputError(
            f"'{path}' is an unfinished result with missing parts; continue the run that began it."
        )
    is_heic = head[4:12] in _HEIC
    if is_heic or path.suffix.lower() in _RAW_SUFFIXES or head[8:10] == b"CR":
        kind = "HEIC photograph" if is_heic else "raw camera file"
        raise MalformedInputError(f"'{path}' is a {kind}, which deconv cannot read; convert it to a 16-bit TIFF first.")
    promised = codec_named(path)
    # Anything may be packed by gzip: the name decides.
    is_packed = head.startswith(b"\x1f\x8b")
    found = [codec for codec in all_codecs() if codec.recognizes(head) and (codec is promised or not is_packed)]
    if not found:
        *names, last = (codec.name for codec in all_codecs())
        raise MalformedInputError(f"'{path}' is not a supported file; deconv reads {', '.join(names)} and {last}.")
    return promised if promised is not None and promised in found else found[0]


def suffix_note(path: Path, codec: Codec) -> tuple[str, ...]:
    """Note that the suffix of a file belongs to another format than its content."""
    promised = codec_named(path)
    if promised is None or promised is codec:
        return ()
    return (f"the name ends in {path.suffix}, but the content is {codec.name} and was read as such",)
