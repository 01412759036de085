"""Reading a kernel: a tensor as `torch.nn.functional.conv2d` takes it, a kernel field, or a point-spread function."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

import torch

from deconv_cli.errors import MalformedInputError, ShapeError, UsageError
from deconv_cli.io.codec import codec_of_content, suffix_note
from deconv_cli.io.codecs.tensor_codecs import SAFETENSORS
from deconv_cli.io.files import open_source
from deconv_cli.io.image import read_image
from deconv_cli.io.layout import as_real_tensor, check_finite
from deconv_cli.io.tensors import TensorCodec, describe_tensors, open_tensors
from deconv_cli.measured_light import clean_psf, describe_flaws, refusal_of
from deconv_cli.models.layers import ModelLayer, read_layer
from deconv_cli.vocabulary import AXES_BY_SHAPE, Convention

FIELD_TENSORS = ("kernels", "rows", "columns")
"""The names of the tensors of a kernel field; a file that holds these and no others is one."""
_UNIT_SUM = 0.01
"""A sum of taps this close to 1 is one."""
_FLIPPED = {
    n_axes: f"the file shows what becomes of a point, so its taps were reversed along {along}"
    for n_axes, along in {1: "their axis", 2: "both axes", 3: "all three axes"}.items()
}


@dataclass(frozen=True, eq=False)
class KernelFile:
    """A kernel as read, its taps in the order of a cross-correlation.

    Attributes:
        kernel: float32 or float64, shape `(*k)`, `(C, *k)` for one a channel, or `(C_out, C_in, *k)`; of a kernel field
            `(n_rows, n_columns, kH, kW)`.
        bias: what the layer adds to each output channel, shape `(C_out,)`.
        layer: the layer of a model that the kernel was taken from.
        convention: of the file.
        picture_notes: further notes for a kernel that is applied to pictures, or undone in them.
        refusal: why a picture is not restored with it, unless the caller decided on `clean`.
        places: the rows and the columns of a kernel field, in parts of the frame; `None` of other kernels.
        dimensions: axes of space that the taps span, `k`.
        is_ambiguous: a tensor of three axes, which may be one kernel for each channel, for a stack, or a layer's for
            signals: `dimensions` was assumed.
        spacing: distances of neighboring taps along the axes of space, in micrometers, where the file has them.
        geometry: stride, padding and the rest of the layer in the file, in torch's words; else empty.
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
        convention: of the file; None for a convolution in pictures and a correlation in tensor files.
        normalize: divide by the sum of the taps (for each channel; each output channel, if there are four axes); None
            divides pictures alone, and those of fractions only where their sum is far from 1.
        clean: subtract the background of a point-spread function, crop its empty margin, and center it; `None` only
            checks whether that is needed.
        dimensions: axes of space of the images, 1, 2 or 3; a kernel of fewer axes spans the last ones. `None` takes a
            stack of pages for three, and decides for a tensor by its number of axes: one is a signal's, five are a
            layer's for stacks, two to four are for pictures.

    Raises:
        UsageError: no such file or layer, or a sum of zero that should be divided by.
        ShapeError: another number of axes, or pictures at several times.
        InputRefusedError: damaged, unsafe, too large, empty, all zero, not finite, or no plain convolution.
    """
    head, sha256 = open_source(path)
    codec = codec_of_content(path, head)
    notes = suffix_note(path, codec)
    held = convention or (Convention.CONVOLUTION if codec.is_picture else Convention.CORRELATION)
    if codec is SAFETENSORS and layer is None:
        field = _read_field(path, sha256, notes, held, normalize=bool(normalize))
        if field is not None and clean:
            raise UsageError(
                f"clean_kernel=True crops each kernel separately, so the kernels of the field '{path}' would be "
                "misaligned; leave it out."
            )
        if field is not None:
            return field
    bias_name, is_ambiguous, spacing, is_computed = "", False, None, False
    if isinstance(codec, TensorCodec):
        stored, bias_name = read_layer(path, codec, layer)
        is_known_layer = bool(stored.geometry) or stored.bias is not None
        is_ambiguous = stored.weight.ndim == 3 and dimensions is None and not is_known_layer
        if is_known_layer and dimensions is None:  # the taps of a layer have two axes of channels
            dimensions = stored.weight.ndim - 2
        n_axes = _axes_of_space(path, stored.weight, dimensions)
    elif layer is not None:
        raise UsageError(f"layer=\"{layer}\" chooses among named tensors, but '{path}' is a {codec.name} file.")
    else:
        pictures, n_axes, spacing, is_computed = _read_psf_pictures(path, dimensions)
        stored = ModelLayer("", pictures)
    weight = stored.weight
    check_finite(path, weight, "kernel")
    if not bool(weight.any()):
        raise MalformedInputError(f"kernel '{path}' should have taps, but they are all zero.")
    taps = weight[0] if weight.ndim == n_axes + 1 and len(weight) == 1 else weight
    if held is Convention.CONVOLUTION:
        taps = taps.flip(_space_axes(n_axes))
        notes += (_FLIPPED[n_axes],)
    dtype = torch.float64 if taps.dtype == torch.float64 else torch.float32
    if clean:
        taps, note = clean_psf(taps, n_axes)
        notes += (note,)
    is_unit = weight.is_floating_point() and _is_unit_sum(taps, n_axes)
    divides = codec.is_picture and not is_unit if normalize is None else normalize
    if divides:
        sums = _sums_of_taps(taps, n_axes)
        if bool((sums == 0).any()):
            raise UsageError(f"kernel '{path}' cannot be divided by its sum, which is zero; pass normalize=False.")
        taps = taps.to(torch.float64) / sums
        notes += (f"the taps were divided by their sum ({_listed(sums)})",)
    if taps.ndim == n_axes + 1:
        notes += (f"each of the {len(taps)} channels has its own kernel",)
    notes += (*_geometry_notes(stored.geometry), *_bias_notes(stored, bias_name, is_taken=bias))
    is_layer = taps.ndim == n_axes + 2 and taps.shape[1] > 1
    of_picture = () if stored.geometry or is_layer or is_computed else describe_flaws(taps, n_axes)
    if convention is None and not is_layer and held is not Convention.CONVOLUTION:
        of_picture += _orientation_notes(taps, n_axes)
    if normalize is None and not divides and not is_layer:
        of_picture += _sum_notes(taps, n_axes)
    return KernelFile(
        path=path,
        kernel=taps.to(dtype).contiguous(),
        bias=_as_floating(stored.bias) if bias and stored.bias is not None else None,
        layer=stored.name or None,
        convention=held,
        sha256=sha256,
        notes=notes,
        picture_notes=of_picture,
        refusal=refusal_of(taps, n_axes) if codec.is_picture and clean is None and not is_computed else None,
        dimensions=n_axes,
        is_ambiguous=is_ambiguous,
        spacing=spacing,
        geometry=stored.geometry,
    )


def _read_field(
    path: Path, sha256: str, notes: tuple[str, ...], held: Convention, *, normalize: bool
) -> KernelFile | None:
    """Read a kernel field, each kernel divided by its sum on request; `None` if the file holds something else."""
    opened = open_tensors(path, SAFETENSORS)
    if set(opened.shapes) != set(FIELD_TENSORS):
        return None
    shape = opened.shapes["kernels"]
    if len(shape) != 4 or 0 in shape or (opened.shapes["rows"], opened.shapes["columns"]) != ((shape[0],), (shape[1],)):
        raise MalformedInputError(
            f"kernel field '{path}' should hold kernels of shape (n_rows, n_columns, kH, kW), rows of shape (n_rows,) "
            f"and columns of shape (n_columns,), but holds {describe_tensors(opened.shapes)}."
        )
    kernels, rows, columns = (as_real_tensor(path, opened.read(name)) for name in FIELD_TENSORS)
    check_finite(path, kernels, "kernel field")
    taps = _as_floating(kernels)
    if held is Convention.CONVOLUTION:
        taps = taps.flip((-2, -1))
        notes += (_FLIPPED[2],)
    sums = taps.double().sum(dim=(-2, -1), keepdim=True)
    if normalize and bool((sums == 0).any()):
        raise UsageError(f"a kernel of the field '{path}' cannot be divided by its sum, which is zero.")
    taps = (taps / sums).to(taps.dtype) if normalize else taps
    notes += ("the taps of each kernel were divided by their sum",) if normalize else ()
    places = tuple(rows.double().tolist()), tuple(columns.double().tolist())
    return KernelFile(path, taps.contiguous(), None, None, held, sha256, notes, places=places)


def _axes_of_space(path: Path, weight: torch.Tensor, dimensions: int | None) -> int:
    """Count the axes of space of a tensor of taps."""
    n_axes = AXES_BY_SHAPE[weight.ndim] if dimensions is None else min(dimensions, weight.ndim)
    if weight.ndim > n_axes + 2:
        raise ShapeError(
            f"kernel '{path}' of shape {tuple(weight.shape)} has {weight.ndim} axes, too many for one of "
            f"dimensions={dimensions}, which has {n_axes}, or up to {n_axes + 2} with channels."
        )
    return n_axes


def _read_psf_pictures(path: Path, dimensions: int | None) -> tuple[torch.Tensor, int, tuple[float, ...] | None, bool]:
    """Read one plane, or a stack of planes along Z.

    Returns:
        The taps as stored, shape `(*k)`, or `(C, *k)` where the channels differ; the axes of space; the spacing; and
        whether `deconv kernel make` or `microscope` computed the taps, which then have no background.
    """
    image = read_image(path)
    if len(image.values) != 1:
        with suppress(ShapeError):  # it has no depth
            image = image.spanned_by(3)
    if image.dimensions > (dimensions or 3):
        raise UsageError(
            f"kernel '{path}' is a stack of shape {image.shape}, which spans 3 axes, but the images have "
            f"{dimensions}; use dimensions=3, or give a kernel of one plane."
        )
    if len(image.values) != 1:
        raise ShapeError(
            f"kernel '{path}' should be one plane, or one stack of planes along Z, but has axes {image.axes} and "
            f"shape {image.shape}; give kernels for several channels as channels of one picture, as an array (C, kH, "
            "kW), or as separate files."
        )
    channels = image.values[0]
    taps = channels[0] if bool((channels == channels[0]).all()) else channels
    is_computed = (image.record or {}).get("command") in ("kernel make", "kernel microscope")
    return taps, image.dimensions, image.spacing, is_computed


def _as_floating(stored: torch.Tensor) -> torch.Tensor:
    return stored if stored.dtype == torch.float64 else stored.to(torch.float32)


def _space_axes(n_axes: int) -> tuple[int, ...]:
    return tuple(range(-n_axes, 0))


def _sums_of_taps(taps: torch.Tensor, n_axes: int) -> torch.Tensor:
    """Sum the taps of each channel, or of each output channel, with axes to divide by: shape `(C, 1, ...)`."""
    axes = tuple(range(1, taps.ndim)) if taps.ndim == n_axes + 2 else _space_axes(n_axes)
    return taps.to(torch.float64).sum(dim=axes, keepdim=True)


def _is_unit_sum(taps: torch.Tensor, n_axes: int) -> bool:
    return bool(((_sums_of_taps(taps, n_axes) - 1).abs() <= _UNIT_SUM).all())


def _listed(sums: torch.Tensor) -> str:
    first = ", ".join(f"{float(value):g}" for value in sums.flatten()[:8])
    return f"{first}{', ...' if sums.numel() > 8 else ''}"


def _geometry_notes(geometry: dict[str, Any]) -> tuple[str, ...]:
    """Note the geometry in the file: `stride 2,2, padding 3,3, ...`."""
    texts = [f"{name} {','.join(map(str, v)) if isinstance(v, list) else v}" for name, v in geometry.items()]
    if not texts:
        return ()
    return (f"the layer has {', '.join(texts)}; these values are used unless you give others",)


def _orientation_notes(taps: torch.Tensor, n_axes: int) -> tuple[str, ...]:
    """Warn of an array that is not flipped, if that matters and the caller gave no convention."""
    wide = taps.to(torch.float64)
    if bool((wide - wide.flip(_space_axes(n_axes))).abs().max() <= 1e-3 * wide.abs().max()):
        return ()
    return (
        f"the kernel is not symmetric, and its array was read as the taps of a cross-correlation, as conv{n_axes}d "
        'applies them; for a point-spread function as a camera sees it, choose convention="convolution"; '
        'convention="correlation" turns this note off',
    )


def _sum_notes(taps: torch.Tensor, n_axes: int) -> tuple[str, ...]:
    """Note that the taps were not divided by their sum, where that changes the brightness."""
    if _is_unit_sum(taps, n_axes):
        return ()
    return (
        f"the taps of the kernel add up to {_listed(_sums_of_taps(taps, n_axes))} and were not normalized, so the "
        "brightness of the estimate is that of the data divided by this sum; normalize=True divides the taps by their "
        "sum",
    )


def _bias_notes(layer: ModelLayer, name: str, *, is_taken: bool) -> tuple[str, ...]:
    if layer.bias is None:
        return ()
    if not is_taken:
        return (f"the bias '{name}' was not used",)
    return (
        f"the bias '{name}' of {layer.bias.numel()} numbers was read too; invert subtracts it from the data first, "
        "and forward adds it",
    )
