"""TIFF: plain with the axes in JSON, ImageJ's kind, or OME's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from deconv_cli.errors import UsageError
from deconv_cli.io.codec import Codec, StoredImage, WriteRequest, signals_refusal
from deconv_cli.io.codecs import tiff_ome
from deconv_cli.io.codecs.tiff_reader import DESCRIPTION, IMAGEJ, WHITE_IS_ZERO, read_tiff
from deconv_cli.io.codecs.tiff_regions import TiffSource, TiffTarget, tile_side
from deconv_cli.io.codecs.tiff_writer import BIG_TIFF_BYTES, write_tiff
from deconv_cli.io.layout import Layout, rename_batch
from deconv_cli.io.metadata import Metadata, has_other_exif
from deconv_cli.io.region_arrays import RegionSource, RegionTarget

OME_SUFFIXES = (".ome.tif", ".ome.tiff")
IMAGEJ_AXES = "TZCYXS"
"""Letters of ImageJ's axes, in the order of its files."""

_IMAGEJ_DTYPES = ("uint8", "int16", "uint16", "float32")
_AS_RESOLUTION = {f"{IMAGEJ}unit", f"{IMAGEJ}spacing"}


class Tiff(Codec):
    """TIFF files; OME-TIFF where the name ends in .ome.tif, or where the source is one."""

    name = "TIFF"
    suffixes = (".tif", ".tiff")
    magic = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
    record_inside = True
    carries = frozenset({"density", "icc_profile", "exif", "channel_names"})
    selects = "series"

    def read(self, path: Path, member: str | int | None = None) -> StoredImage:
        """Read one series."""
        return read_tiff(path, None if member is None else int(member))

    def check(self, request: WriteRequest) -> None:
        """Refuse signals; if the name asks for OME, also sample types and axes that OME does not know."""
        if request.layout.dimensions == 1:
            raise signals_refusal(self, request)
        if not _is_ome_name(request.path):
            return
        if request.dtype not in tiff_ome.WRITABLE_DTYPES:
            raise UsageError(
                f"'{request.path}' cannot hold {request.dtype} samples, since OME has no name for them; choose .tif."
            )
        axes = rename_batch(request.layout.with_channels(request.n_channels).squeezed().axes, tiff_ome.AXES)
        if set(axes) - set(tiff_ome.AXES):
            raise UsageError(
                f"'{request.path}' cannot hold axes {request.layout.axes}, since OME knows only T and Z besides "
                "channels; choose .tif."
            )

    def order_axes(self, request: WriteRequest, layout: Layout) -> tuple[Layout, str, tuple[str, ...]]:
        """Keep the axes of the source that are longer than one, with the plane at the end."""
        layout = layout.squeezed().planes_last()
        if request.flavor == "imagej" and not _is_ome_name(request.path):
            layout = layout.ordered(IMAGEJ_AXES)
        elif "S" in layout.axes and not layout.axes.endswith(("S", "SYX")) and _is_ome_name(request.path):
            layout = layout.ordered("YXS")  # OME stores the samples of a pixel together
        is_free = not _is_ome_name(request.path) and request.flavor not in ("ome", "imagej")
        axes = layout.axes if is_free else rename_batch(layout.axes, tiff_ome.AXES)
        new = [letter for letter in axes if letter not in request.layout.axes + "C"]
        return layout, axes, tuple(f"a batch axis was named {letter}" for letter in new)

    def choose_metadata(self, request: WriteRequest, image: StoredImage) -> tuple[Metadata, list[str]]:
        """Choose the metadata that the kind of TIFF has room for; `flavor` becomes that kind."""
        kept, lost = super().choose_metadata(request, image)
        kind = "ome" if _is_ome_name(request.path) else _kind_like_source(image)
        prefix = {"ome": tiff_ome.PREFIX, "imagej": IMAGEJ, "": DESCRIPTION}[kind]
        of_resolution = _AS_RESOLUTION if kept.density else set()
        room_for = {WHITE_IS_ZERO, *(n for n in (*kept.native, *kept.native_of_channels) if n.startswith(prefix))}
        bits = str(kept.native.get(tiff_ome.SIGNIFICANT_BITS, ""))
        if bits and not (bits.isdecimal() and int(bits) <= 8 * np.dtype(image.dtype).itemsize):
            room_for.discard(tiff_ome.SIGNIFICANT_BITS)
        lost += [name for name in kept.native if name not in room_for | of_resolution]
        lost += ["EXIF other than texts such as the camera and the artist"] if has_other_exif(kept.exif) else []
        lost += [name for name in kept.native_of_channels if name not in room_for]
        native = {name: value for name, value in kept.native.items() if name in room_for}
        of_channels = {name: value for name, value in kept.native_of_channels.items() if name in room_for}
        return replace(kept, native=native, native_of_channels=of_channels, flavor=kind), lost

    def write(self, path: Path, image: StoredImage) -> None:
        """Write a file of the kind that `choose_metadata` chose, with its record."""
        write_tiff(path, image)

    def open_regions(self, path: Path, member: str | int | None) -> RegionSource:
        """Open a series."""
        return TiffSource.of(path, None if member is None else int(member))

    def plan_regions(self, request: WriteRequest, layout: Layout, source: RegionSource) -> RegionTarget:
        """Decide on the axes, the tiles and the metadata; an ImageJ file, which ends at 4 GB, becomes a plain one."""
        flavor = "ome" if request.flavor == "ome" else ""
        request = replace(request, flavor=flavor)
        image = self.describe_result(request, layout, replace(source.metadata, flavor=flavor))
        is_together = image.axes.endswith("S")
        unit = tuple(
            tile_side(length) if letter in "YX" else length if letter == "S" and is_together else 1
            for letter, length in zip(image.axes, image.shape, strict=True)
        )
        return TiffTarget(request.path, image.shape, request.dtype, image.axes, unit, image.notes, image.metadata)


TIFF = Tiff()


def _is_ome_name(path: Path) -> bool:
    return path.name.lower().endswith(OME_SUFFIXES)


def _kind_like_source(image: StoredImage) -> str:
    """Keep the kind of the source if it can hold the samples and axes; else choose a plain file."""
    flavor, axes = image.metadata.flavor, image.axes
    if flavor == "ome" and image.dtype in tiff_ome.WRITABLE_DTYPES and set(axes) <= set(tiff_ome.AXES):
        return flavor
    colors_fit = "S" not in axes or image.dtype == "uint8"
    in_order = [letter for letter in IMAGEJ_AXES if letter in axes] == list(axes)
    is_small = image.samples.nbytes < BIG_TIFF_BYTES  # the offsets have 32 bits
    fits = image.dtype in _IMAGEJ_DTYPES and in_order and colors_fit and is_small
    return flavor if flavor == "imagej" and fits else ""
