"""TIFF: plain with the axes in JSON, ImageJ's kind, or OME's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from deconv_cli.errors import UsageError
from deconv_cli.io.codec import Array, Codec, WriteRequest, from_images, signals_refusal
from deconv_cli.io.layout import Layout
from deconv_cli.io.stored_image import Metadata, StoredImage

OME_SUFFIXES = (".ome.tif", ".ome.tiff")


class Tiff(Codec):
    """TIFF files; OME-TIFF where the name ends in .ome.tif, or where the source is one."""

    name = "TIFF"
    suffixes = (".tif", ".tiff")
    magic = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
    record_inside = True
    holds_alpha = True
    carries = frozenset({"resolution", "icc_profile", "exif", "channel_names"})
    selects = "series"

    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read one series."""
        from deconv_cli.io.codecs.tiff_reader import read_tiff

        return read_tiff(path, series=None if member is None else int(member))

    def check(self, request: WriteRequest) -> None:
        """Refuse signals, and sample types and axes that OME does not know, where the name asks for OME."""
        from deconv_cli.io.codecs import tiff_ome

        if request.layout.dimensions == 1:
            raise signals_refusal(self, request)
        if not is_ome_name(request.path):
            return
        if request.dtype not in tiff_ome.WRITABLE_DTYPES:
            raise UsageError(
                f"'{request.path}' cannot hold {request.dtype} samples, since OME has no word for them; choose .tif."
            )
        axes = _renamed(request.layout.with_channels(request.n_channels).squeezed().axes, tiff_ome.AXES)
        if set(axes) - set(tiff_ome.AXES):
            raise UsageError(
                f"'{request.path}' cannot hold axes {request.layout.axes}, since OME knows T and Z beside channels; "
                "choose .tif."
            )

    def arrange(self, request: WriteRequest, samples: Array, alpha: Array | None) -> StoredImage:
        """Keep the axes of the source that are longer than one, with the plane at the end."""
        layout = request.layout_of_result(samples.shape[1], samples.shape[2:])
        layout, axes, notes = order_axes(request, layout, keep="YX" if alpha is None else "YXS")
        array = from_images(layout, samples)
        if alpha is not None:
            array = np.concatenate([array, from_images(layout.resized(S=1), alpha)], axis=layout.axes.index("S"))
        return StoredImage(array, axes, notes=notes)

    def alpha_refusal(self, request: WriteRequest, alpha: Array) -> str | None:
        """Say why the alpha channel cannot be written; None if it can."""
        return None if request.same_channels else "the channels are no longer colors"

    def carry(self, request: WriteRequest, image: StoredImage) -> tuple[Metadata, list[str]]:
        """Choose the metadata that the kind of TIFF has room for."""
        from deconv_cli.io.codecs.tiff_writer import carry, choose_kind

        kept, lost = super().carry(request, image)
        kind = choose_kind(image, wants_ome=is_ome_name(request.path))
        kept, lost_by_kind = carry(replace(kept, flavor=kind), n_bits=8 * np.dtype(image.dtype).itemsize)
        return kept, lost + lost_by_kind

    def write(self, path: Path, image: StoredImage) -> None:
        """Write a file of the kind that `carry` chose."""
        from deconv_cli.io.codecs.tiff_writer import write_tiff

        write_tiff(path, image)


TIFF = Tiff()


def order_axes(request: WriteRequest, layout: Layout, keep: str = "YX") -> tuple[Layout, str, tuple[str, ...]]:
    """Order the axes of a result as TIFF has them, those of length one left out but for `keep`.

    Returns:
        The layout, the letters that its axes get, and what is to be said of these.
    """
    from deconv_cli.io.codecs import tiff_imagej, tiff_ome

    layout = layout.squeezed(keep=keep).planes_last()
    if request.flavor == "imagej" and not is_ome_name(request.path):
        layout = layout.ordered(tiff_imagej.AXES)
    is_free = not is_ome_name(request.path) and request.flavor not in ("ome", "imagej")
    axes = layout.axes if is_free else _renamed(layout.axes, tiff_ome.AXES)
    new = [letter for letter in axes if letter not in request.layout.axes + "C"]
    return layout, axes, tuple(f"a batch axis was named {letter}" for letter in new)


def is_ome_name(path: Path) -> bool:
    """Check whether a name asks for OME-TIFF."""
    return path.name.lower().endswith(OME_SUFFIXES)


def _renamed(axes: str, allowed: str) -> str:
    """Rename batch axes to T or Z where only certain letters are allowed, as far as these two reach."""
    free = [letter for letter in "TZ" if letter not in axes]
    return "".join(free.pop(0) if letter not in allowed and free else letter for letter in axes)
