"""Reading a kernel: a tensor as `torch.nn.functional.conv2d` takes it, or a point-spread function in pictures."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

import torch

from deconv_cli.errors import MalformedInputError, ShapeError, UsageError
from deconv_cli.io.formats import codec_of_content, suffix_note
from deconv_cli.io.image import read_image
from deconv_cli.io.samples import check_finite
from deconv_cli.io.sources import open_source
from deconv_cli.io.tensors import TensorCodec
from deconv_cli.models.kernel_field_files import FieldTensors, read_field_tensors
from deconv_cli.models.kernel_notes import (
    UNIT_SUM,
    bias_notes,
    channel_notes,
    geometry_notes,
    is_layer,
    listed,
    orientation_notes,
    space_axes,
    sum_notes,
    sums_of_taps,
)
from deconv_cli.models.layers import Layer, read_layer
from deconv_cli.models.measured_psf import clean_psf, describe_flaws, refusal_of
from deconv_cli.vocabulary import AXES_BY_SHAPE, Convention


@dataclass(frozen=True, eq=False)
class KernelFile:
    """A kernel as read, its taps in the order of a cross-correlation.

    Attributes:
        kernel: float32 or float64, shape `(*k)`, `(C, *k)` for one a channel, or `(C_out, C_in, *k)`; of a kernel field
            `(n_rows, n_columns, kH, kW)`.
        bias: what the layer adds to each output channel, shape `(C_out,)`.
        layer: the layer of a model that the kernel was taken from.
        convention: what the file held.
        picture_notes: what to know besides if it is a picture that the kernel is applied to, or undone in.
        refusal: why a picture is not restored with it, unless `clean` said what to do.
        places: the rows and the columns of a kernel field, in parts of the frame; `None` of other kernels.
        dimensions: axes of space that the taps span, `k`.
        is_ambiguous: a tensor of three axes, which may be one kernel for each channel, for a stack, or a layer's for
            signals: `dimensions` is what was taken for want of a word.
        spacing: distances of neighboring taps along the axes of space, in micrometers, where the file has them.
        geometry: what the file says of stride, padding and the rest of the layer, in torch's words; else empty.
    """

    path: Path
    kernel: torch.Tensor
    bias: torch.Tensor | None
    layer: str | None
    convention: Convention
    sha256: str
    notes: tuple[str, ...]
    picture_notes: tuple[str, ...] = ()
    refusal: str | None = None
    places: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    dimensions: int = 2
    is_ambiguous: bool = False
    spacing: tuple[float, ...] | None = None
    geometry: dict[str, Any] = dataclass_field(default_factory=dict)


def read_kernel(
    path: Path,
    *,
    layer: str | None = None,
    bias: bool = True,
    convention: Convention | None = None,
    normalize: bool | None = None,
    clean: bool | None = None,
    dimensions: int | None = None,
) -> KernelFile:
    """Read a kernel from a file of any format understood.

    Args:
        path: the file; its format is recognized by its content.
        layer: name of a layer or a tensor in a file of several.
        bias: read the bias of the layer too, if it has one.
        convention: what the file holds; None for a convolution in pictures and a correlation in tensor files.
        normalize: divide by the sum of the taps (for each channel; each output channel, if there are four axes); None
            divides pictures alone, and those of fractions only where their sum is far from 1.
        clean: subtract the background of a point-spread function, crop its empty margin, and center it; `None` looks
            whether that is needed.
        dimensions: axes of space of what the kernel is for, 1, 2 or 3; a kernel of fewer axes spans the last ones.
            `None` takes a stack of pages for three, and of a tensor what its number of axes tells: one is a signal's,
            five are a layer's for stacks, two to four are for pictures.

    Raises:
        UsageError: no such file or layer, or a sum of zero that should be divided by.
        ShapeError: another number of axes, or pictures at several times.
        InputRefusedError: damaged, unsafe, too large, empty, all zero, not finite, or no plain convolution.
    """
    head, sha256 = open_source(path)
    codec = codec_of_content(path, head)
    notes = suffix_note(path, codec)
    field = read_field_tensors(path, codec) if isinstance(codec, TensorCodec) and layer is None else None
    if field is not None:
        if clean:
            raise UsageError(
                f"clean_kernel=True crops each kernel by itself, so that those of the field '{path}' would not lie "
                "alike; leave it out."
            )
        return _field_file(path, field, sha256, notes, convention or Convention.CORRELATION, normalize=bool(normalize))
    if isinstance(codec, TensorCodec):
        layer_found = read_layer(path, codec, head, layer)
        is_known_layer = bool(layer_found.geometry) or layer_found.bias is not None
        if is_known_layer and dimensions is None:  # the taps of a layer have two axes of channels
            dimensions = layer_found.weight.ndim - 2
        n_axes = _axes_of_space(path, layer_found.weight, dimensions)
        found = _Taps(layer_found, n_axes, is_ambiguous=layer_found.weight.ndim == 3 and dimensions is None)
    elif layer is not None:
        raise UsageError(f"layer=\"{layer}\" chooses among named tensors, but '{path}' is a {codec.name} file.")
    else:
        found = _read_psf_pictures(path, dimensions)
    weight, n_axes = found.layer.weight, found.n_axes
    check_finite(path, weight, "kernel")
    if not bool(weight.any()):
        raise MalformedInputError(f"kernel '{path}' should have taps, but all of them are zero.")
    held = convention or (Convention.CONVOLUTION if codec.is_picture else Convention.CORRELATION)
    taps = weight[0] if weight.ndim == n_axes + 1 and len(weight) == 1 else weight
    if held is Convention.CONVOLUTION:
        taps = taps.flip(space_axes(n_axes))
        notes += (_FLIPPED[n_axes],)
    dtype = torch.float64 if taps.dtype == torch.float64 else torch.float32
    if clean:
        taps, note = clean_psf(taps, n_axes)
        notes += (note,)
    divides = codec.is_picture and not _is_unit_sum(taps, weight, n_axes) if normalize is None else normalize
    if divides:
        taps, note = _divided(path, taps, n_axes)
        notes += (note,)
    bias_found = found.layer.bias
    notes = (
        *notes,
        *channel_notes(taps, n_axes),
        *geometry_notes(found.layer.geometry),
        *bias_notes(found.layer, bias),
    )
    is_measured = codec.is_picture and clean is None
    of_picture = () if found.layer.geometry or is_layer(taps, n_axes) else describe_flaws(taps, n_axes)
    if convention is None:
        of_picture += orientation_notes(taps, held, n_axes)
    if normalize is None and not divides:
        of_picture += sum_notes(taps, n_axes)
    return KernelFile(
        path=path,
        kernel=taps.to(dtype).contiguous(),
        bias=_as_floating(bias_found) if bias and bias_found is not None else None,
        layer=found.layer.name,
        convention=held,
        sha256=sha256,
        notes=notes,
        picture_notes=of_picture,
        refusal=refusal_of(taps, n_axes) if is_measured else None,
        dimensions=n_axes,
        is_ambiguous=found.is_ambiguous,
        spacing=found.spacing,
        geometry=found.layer.geometry,
    )


@dataclass(frozen=True, eq=False)
class _Taps:
    """Taps as stored, in `n_axes` axes of space, and what else `KernelFile` says of them."""

    layer: Layer
    n_axes: int
    is_ambiguous: bool = False
    spacing: tuple[float, ...] | None = None


def _axes_of_space(path: Path, weight: torch.Tensor, dimensions: int | None) -> int:
    """Count the axes of space of a tensor of taps."""
    n_axes = AXES_BY_SHAPE[weight.ndim] if dimensions is None else min(dimensions, weight.ndim)
    if weight.ndim > n_axes + 2:
        raise ShapeError(
            f"kernel '{path}' of shape {tuple(weight.shape)} has {weight.ndim} axes, too many for one of "
            f"dimensions={dimensions}, which has {n_axes}, or up to {n_axes + 2} with channels."
        )
    return n_axes


def _field_file(
    path: Path, field: FieldTensors, sha256: str, notes: tuple[str, ...], held: Convention, *, normalize: bool
) -> KernelFile:
    """Bring the kernels of a field into the order of a cross-correlation, and divide each by its sum where wanted."""
    check_finite(path, field.kernels, "kernel field")
    taps = _as_floating(field.kernels)
    if held is Convention.CONVOLUTION:
        taps = taps.flip((-2, -1))
        notes += (_FLIPPED[2],)
    sums = taps.double().sum(dim=(-2, -1), keepdim=True)
    if normalize and bool((sums == 0).any()):
        raise UsageError(f"a kernel of the field '{path}' cannot be divided by its sum, which is zero.")
    taps = (taps / sums).to(taps.dtype) if normalize else taps
    notes += ("the taps of each kernel were divided by their sum",) if normalize else ()
    places = (field.rows, field.columns)
    return KernelFile(path, taps.contiguous(), None, None, held, sha256, notes, places=places)


_FLIPPED = {
    n_axes: f"the file holds a convolution, so its taps were flipped along {along}"
    for n_axes, along in {1: "their axis", 2: "both axes", 3: "all three axes"}.items()
}


def _read_psf_pictures(path: Path, dimensions: int | None) -> _Taps:
    """Read one plane, or a stack of planes along Z, as stored: shape `(*k)`, or `(C, *k)` where the channels differ."""
    image = read_image(path)
    if len(image.values) != 1:
        with suppress(UsageError):  # it has no depth
            image = image.spanned_by(3)
    if image.dimensions > (dimensions or 3):
        raise UsageError(
            f"kernel '{path}' is a stack of shape {image.shape}, which spans 3 axes, but the images have {dimensions}; "
            "say that they have three, or give a kernel of one plane."
        )
    if len(image.values) != 1:
        raise ShapeError(
            f"kernel '{path}' should be one plane, or one stack of planes along Z, but has axes {image.axes} and shape "
            f"{image.shape}; give one for each channel as channels of one picture, as an array (C, kH, kW), or as "
            "files of their own."
        )
    channels = image.values[0]
    taps = channels[0] if bool((channels == channels[0]).all()) else channels
    return _Taps(Layer(None, taps), image.dimensions, spacing=image.spacing)


def _is_unit_sum(taps: torch.Tensor, stored: torch.Tensor, n_axes: int) -> bool:
    return stored.is_floating_point() and bool(((sums_of_taps(taps, n_axes) - 1).abs() <= UNIT_SUM).all())


def _as_floating(stored: torch.Tensor) -> torch.Tensor:
    return stored if stored.dtype == torch.float64 else stored.to(torch.float32)


def _divided(path: Path, taps: torch.Tensor, n_axes: int) -> tuple[torch.Tensor, str]:
    sums = sums_of_taps(taps, n_axes)
    if bool((sums == 0).any()):
        raise UsageError(f"kernel '{path}' cannot be divided by its sum, which is zero; pass normalize=False.")
    return taps.to(torch.float64) / sums, f"the taps were divided by their sum ({listed(sums)})"
