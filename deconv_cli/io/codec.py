"""What a file format says about itself: a codec is a subclass in a file of its own, listed in `parts.CODECS`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deconv_cli.errors import UsageError
from deconv_cli.io import records
from deconv_cli.io.layout import Layout
from deconv_cli.io.stored_image import Metadata, StoredImage
from deconv_cli.vocabulary import OutputDType

Array = npt.NDArray[np.generic]

_SHARED = {"resolution": "resolution", "icc_profile": "ICC profile", "exif": "EXIF", "channel_names": "channel names"}
"""Fields of `Metadata` that several formats can hold, with their names in notes."""


@dataclass(frozen=True)
class WriteRequest:
    """What is to be written, as far as it is known before the computation."""

    path: Path
    dtype: str
    """NumPy name of the sample type."""
    n_channels: int
    layout: Layout
    """Of the image that the result is computed from, its alpha left out."""
    source_format: str
    """Name of that image's format."""
    from_picture: bool
    flavor: str
    """`Metadata.flavor` of that image."""
    n_levels: int = 1
    """How many resolutions are to be stored, each half the one before."""

    @property
    def same_channels(self) -> bool:
        """True where the result has as many channels as the source."""
        return self.n_channels == self.layout.n_channels

    def layout_of_result(self, n_channels: int, size: Sequence[int]) -> Layout:
        """Give the layout of a result of so many channels and of this size in space, in the order of the source."""
        return self.layout.with_channels(n_channels).resized_space(size)


class Codec(ABC):
    """One file format: how it is recognized, read and written, and what it can hold.

    A subclass sets the attributes that differ from these, and imports its library inside of its methods, so that
    suffixes and first bytes are known before any library is loaded.
    """

    name: str
    """As messages call the format."""
    suffixes: tuple[str, ...]
    """In lower case; they decide the format of files to be written."""
    magic: tuple[bytes, ...] = ()
    """First bytes of its files, any of these."""
    is_picture: bool = True
    """True for files that a viewer shows, False for files of named tensors."""
    dtypes: tuple[str, ...] = tuple(OutputDType)
    """Sample types that can be written."""
    has_levels: bool = False
    """True where a file can hold the same image at several resolutions, of which the smaller ones are computed."""
    is_folder: bool = False
    """True where one of its files is a folder to the system."""
    is_lossless: bool = True
    """True where samples are read back exactly as they were written."""
    record_inside: bool = False
    """True where `write` puts the record of the run into the file; else it goes beside it, into `NAME.npy.json`."""
    holds_alpha: bool = False
    carries: frozenset[str] = frozenset()
    """Which of `resolution`, `icc_profile`, `exif` and `channel_names` it can hold."""
    selects: str | None = None
    """`tensor` or `series` where a file may hold several arrays, of which one is chosen by name or number."""

    @property
    def is_read_only(self) -> bool:
        """True where files are read and never written."""
        return type(self).write is Codec.write

    @property
    def holds_whole_numbers_only(self) -> bool:
        """True where no fractions can be written; such formats are made for display, and so sRGB unless they say."""
        return OutputDType.FLOAT32 not in self.dtypes

    def recognizes(self, head: bytes) -> bool:
        """Check whether a file is of this format by its first 32 bytes; fewer if it is shorter."""
        return head.startswith(self.magic)

    @abstractmethod
    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read a file, or the array called `member` of it; whatever is raised is taken for damage."""

    def check(self, request: WriteRequest) -> None:  # noqa: B027
        """Refuse by `UsageError` what the format cannot hold, before anything is computed."""

    @abstractmethod
    def arrange(self, request: WriteRequest, samples: Array, alpha: Array | None) -> StoredImage:
        """Order the samples of a result as the file stores them; notes say what became of the axes.

        Args:
            request: what is to be written.
            samples: shape (B, C, H, W), or another number of axes of space.
            alpha: likewise, with A channels, to be put behind the last sample of axis S, or None.
        """

    def alpha_refusal(self, request: WriteRequest, alpha: Array) -> str | None:
        """Say why the alpha channel of the source cannot be written; None if it can."""
        return None if self.holds_alpha else f"{self.name} cannot hold it"

    def carry(self, request: WriteRequest, image: StoredImage) -> tuple[Metadata, list[str]]:
        """Choose what of the metadata of an image goes into the file; gives the names of the rest too."""
        kept, lost = image.metadata, list(image.metadata.unsupported)
        if not request.same_channels:
            lost += ["ICC profile (it is for other channels)"] if kept.icc_profile else []
            lost += ["channel names"] if kept.channel_names else []
            lost += kept.native_of_channels
            kept = replace(kept, icc_profile=None, channel_names=(), native_of_channels={})
        for field, label in _SHARED.items():
            if field not in self.carries and getattr(kept, field):
                lost.append(label)
                kept = replace(kept, **{field: getattr(Metadata(), field)})
        if request.source_format != self.name:
            lost += [*kept.native, *kept.native_of_channels]
            kept = replace(kept, native={}, native_of_channels={})
        return kept, lost

    def record_to_keep(self, record: dict[str, Any]) -> dict[str, Any]:
        """Choose what of the record of a run goes into the file: all of it, but no absolute paths."""
        return records.without_folders(record)

    def write(self, path: Path, image: StoredImage) -> None:
        """Write a file, with the record of the run where the format takes one; formats without this are only read."""
        raise self.read_only_refusal(path)

    def read_only_refusal(self, path: Path) -> UsageError:
        """Say that files of this format are not written."""
        return UsageError(f"'{path}' cannot be written, since {self.name} files are only read; choose .png or .tif.")


class PictureCodec(Codec):
    """A format of one plane, gray or in colors."""

    channel_counts: tuple[int, ...] = (1, 3)
    """How many channels it can hold, alpha not counted."""
    holds_gray: bool = True
    """False where gray is written as equal red, green and blue."""
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

    def arrange(self, request: WriteRequest, samples: Array, alpha: Array | None) -> StoredImage:
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
        planes = planes if alpha is None else np.concatenate([planes, alpha.reshape(-1, height, width)[:1]])
        if len(planes) == 1:
            return StoredImage(planes[0], "YX")
        return StoredImage(np.ascontiguousarray(np.moveaxis(planes, 0, -1)), "YXS", notes=notes)

    def record_to_keep(self, record: dict[str, Any]) -> dict[str, Any]:
        """Choose what may be passed on with a picture: what was done, and by which kernel."""
        return records.short_record(record)

    def carry(self, request: WriteRequest, image: StoredImage) -> tuple[Metadata, list[str]]:
        """Choose the metadata; a resolution without a unit and premultiplied colors are of TIFF alone."""
        kept, lost = super().carry(request, image)
        if kept.resolution and not kept.resolution.unit:
            kept, lost = replace(kept, resolution=None), [*lost, "resolution"]
        if image.alpha == "associated":
            lost.append("premultiplied alpha (it is now read as unassociated)")
        return kept, lost


def not_carried(lost: list[str]) -> tuple[str, ...]:
    """Say what of the metadata could not be carried over, if anything."""
    return (f"not carried over: {', '.join(dict.fromkeys(lost))}",) if lost else ()


def from_images(layout: Layout, samples: Array) -> Array:
    """Order samples of shape (B, C, *space) as a layout stores them."""
    ordered: Array = layout.from_images(torch.from_numpy(np.ascontiguousarray(samples))).numpy()
    return ordered


def signals_refusal(codec: Codec, request: WriteRequest) -> UsageError:
    """Say that a format of pictures does not hold signals."""
    return UsageError(
        f"'{request.path}' cannot hold signals of one axis, since {codec.name} holds pictures; choose .npy, .pt or "
        ".safetensors."
    )
