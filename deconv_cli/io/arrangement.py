"""Which axes a result has in its file, and in which order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from deconv_cli.io.formats import FileFormat, is_ome_name
from deconv_cli.io.image import ImageFile
from deconv_cli.io.layout import TENSOR_AXES, Layout

Array = npt.NDArray[np.generic]


def arrange(
    source: ImageFile, path: Path, file_format: FileFormat, samples: Array, alpha: Array | None
) -> tuple[str, Array]:
    """Order the samples of a result as its file stores them.

    Args:
        source: the image whose manner is kept.
        path: where the result goes; its name tells OME-TIFF from TIFF.
        file_format: of the result.
        samples: shape (B, C, H, W).
        alpha: shape (B, A, H, W), put behind the last sample of axis S, or None.

    Returns:
        The letters of the axes, and the array in their order.
    """
    if file_format.is_display_only:
        return _as_picture(file_format, samples[0], None if alpha is None else alpha[0, :1])
    layout = source._layout.with_channels(samples.shape[1]).with_plane(*samples.shape[-2:])
    if file_format is FileFormat.TIFF:
        return _as_tiff(layout, samples, alpha, tiff_axes_for(source, path))
    if source.is_picture:
        return _as_tensor(samples)
    return layout.axes, _from_planes(layout, samples)


def tiff_axes_for(source: ImageFile, path: Path) -> str:
    """Give the letters that the axes of a TIFF file may have, or an empty text where any letter will do."""
    return "TZCYXS" if is_ome_name(path) or source._flavor == "imagej" else ""


def renamed(axes: str, allowed: str) -> str:
    """Rename batch axes to T or Z where only certain letters are allowed, as far as these two reach."""
    free = [letter for letter in "TZ" if letter not in axes and letter in allowed]
    return "".join(free.pop(0) if allowed and a not in allowed and free else a for a in axes)


def axes_notes(source: ImageFile, file_format: FileFormat, axes: str, n_channels: int) -> tuple[str, ...]:
    """Say what became of the axes, where the file cannot have those of the source."""
    before = source._layout
    notes = []
    if file_format is FileFormat.WEBP and n_channels == 1:
        notes.append("WebP has no gray, so the plane was written as equal red, green and blue")
    if source.is_picture and not file_format.is_picture and len(before.batch_axes) > 1:
        notes.append(f"axes {before.axes} were written as {axes}")
    if file_format is FileFormat.TIFF:
        notes += [f"a batch axis was named {letter}" for letter in axes if letter not in before.axes + "C"]
    return tuple(notes)


def _as_picture(file_format: FileFormat, planes: Array, alpha: Array | None) -> tuple[str, Array]:
    if file_format is FileFormat.WEBP and len(planes) == 1:
        planes = np.repeat(planes, 3, axis=0)
    if alpha is not None:
        planes = np.concatenate([planes, alpha])
    if len(planes) == 1:
        return "YX", planes[0]
    return "YXS", np.ascontiguousarray(np.moveaxis(planes, 0, -1))


def _as_tiff(layout: Layout, samples: Array, alpha: Array | None, allowed: str) -> tuple[str, Array]:
    layout = layout.squeezed(keep="YX" if alpha is None else "YXS").planes_last()
    array = _from_planes(layout, samples)
    if alpha is not None:
        place = layout.axes.index("S")
        sizes = (*layout.sizes[:place], 1, *layout.sizes[place + 1 :])
        array = np.concatenate([array, _from_planes(Layout(layout.axes, sizes), alpha)], axis=place)
    return renamed(layout.axes, allowed), array


def _as_tensor(samples: Array) -> tuple[str, Array]:
    """Leave out the batch of a single plane, and the channel axis of a single gray plane."""
    n_axes = 4 if samples.shape[0] > 1 else 3 if samples.shape[1] > 1 else 2
    return TENSOR_AXES[n_axes], samples.reshape(samples.shape[4 - n_axes :])


def _from_planes(layout: Layout, samples: Array) -> Array:
    ordered: Array = layout.from_planes(torch.from_numpy(np.ascontiguousarray(samples))).numpy()
    return ordered
