"""Reading a kernel: a tensor as `torch.nn.functional.conv2d` takes it, or a picture of a point-spread function."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from deconv_cli.errors import MalformedInputError, ShapeError, UsageError
from deconv_cli.io.formats import codec_of_content, suffix_note
from deconv_cli.io.image import read_image
from deconv_cli.io.samples import check_finite
from deconv_cli.io.sources import open_source
from deconv_cli.io.tensors import TensorCodec
from deconv_cli.models.kernel_field_files import FieldTensors, read_field_tensors
from deconv_cli.models.layers import Layer, read_layer
from deconv_cli.models.measured_psf import clean_psf, describe_flaws
from deconv_cli.vocabulary import Convention


@dataclass(frozen=True, eq=False)
class KernelFile:
    """A kernel as read, its taps in the order of a cross-correlation.

    Attributes:
        kernel: float32 or float64, shape `(kH, kW)`, `(C, kH, kW)` for one a channel, or `(C_out, C_in, kH, kW)`; of a
            kernel field `(n_rows, n_columns, kH, kW)`.
        bias: what the layer adds to each output channel, shape `(C_out,)`.
        layer: the layer of a model that the kernel was taken from.
        convention: what the file held.
        picture_notes: what to know besides if it is a picture that the kernel is applied to, or undone in.
        places: the rows and the columns of a kernel field, in parts of the frame; `None` of other kernels.
    """

    path: Path
    kernel: torch.Tensor
    bias: torch.Tensor | None
    layer: str | None
    convention: Convention
    sha256: str
    notes: tuple[str, ...]
    picture_notes: tuple[str, ...] = ()
    places: tuple[tuple[float, ...], tuple[float, ...]] | None = None


UNIT_SUM = 0.01
"""A sum of taps this close to 1 is one."""


def read_kernel(
    path: Path,
    *,
    layer: str | None = None,
    bias: bool = True,
    convention: Convention | None = None,
    normalize: bool | None = None,
    clean: bool = False,
) -> KernelFile:
    """Read a kernel from a file of any format understood.

    Args:
        path: the file; its format is recognized by its content.
        layer: name of a layer or a tensor in a file of several.
        bias: read the bias of the layer too, if it has one.
        convention: what the file holds; None for a convolution in pictures and a correlation in tensor files.
        normalize: divide by the sum of the taps (for each channel; each output channel, if there are four axes); None
            divides pictures alone, and those of fractions only where their sum is far from 1.
        clean: subtract the background of a point-spread function, crop its empty margin, and center it.

    Raises:
        UsageError: no such file or layer, or a sum of zero that should be divided by.
        ShapeError: another number of axes than two, three or four, or a picture that is a stack.
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
        found = read_layer(path, codec, head, layer)
    elif layer is not None:
        raise UsageError(f"layer=\"{layer}\" chooses among named tensors, but '{path}' is a {codec.name} file.")
    else:
        found = Layer(None, _read_psf_picture(path))
    check_finite(path, found.weight, "kernel")
    if not bool(found.weight.any()):
        raise MalformedInputError(f"kernel '{path}' should have taps, but all of them are zero.")
    held = convention or (Convention.CONVOLUTION if codec.is_picture else Convention.CORRELATION)
    taps = found.weight[0] if found.weight.ndim == 3 and len(found.weight) == 1 else found.weight
    if held is Convention.CONVOLUTION:
        taps = taps.flip((-2, -1))
        notes += (_FLIPPED,)
    dtype = torch.float64 if taps.dtype == torch.float64 else torch.float32
    if clean:
        taps, note = clean_psf(taps)
        notes += (note,)
    divides = codec.is_picture and not _is_unit_sum(taps, found.weight) if normalize is None else normalize
    if divides:
        taps, note = _divided(path, taps)
        notes += (note,)
    notes = (*notes, *_channel_notes(taps), *found.notes, *_bias_notes(found, bias))
    of_picture = () if taps.ndim == 4 and taps.shape[1] > 1 else describe_flaws(taps.reshape(-1, *taps.shape[-2:]))
    if convention is None:
        of_picture += _orientation_notes(taps, held)
    if normalize is None and not divides:
        of_picture += _sum_notes(taps)
    taken = _as_floating(found.bias) if bias and found.bias is not None else None
    return KernelFile(path, taps.to(dtype).contiguous(), taken, found.name, held, sha256, notes, of_picture)


def _field_file(
    path: Path, field: FieldTensors, sha256: str, notes: tuple[str, ...], held: Convention, *, normalize: bool
) -> KernelFile:
    """Bring the kernels of a field into the order of a cross-correlation, and divide each by its sum where wanted."""
    check_finite(path, field.kernels, "kernel field")
    taps = _as_floating(field.kernels)
    if held is Convention.CONVOLUTION:
        taps = taps.flip((-2, -1))
        notes += (_FLIPPED,)
    sums = taps.double().sum(dim=(-2, -1), keepdim=True)
    if normalize and bool((sums == 0).any()):
        raise UsageError(f"a kernel of the field '{path}' cannot be divided by its sum, which is zero.")
    taps = (taps / sums).to(taps.dtype) if normalize else taps
    notes += ("the taps of each kernel were divided by their sum",) if normalize else ()
    places = (field.rows, field.columns)
    return KernelFile(path, taps.contiguous(), None, None, held, sha256, notes, places=places)


_FLIPPED = "the file holds a convolution, so its taps were flipped along both axes"


def _read_psf_picture(path: Path) -> torch.Tensor:
    """Read a picture of one plane, as stored: shape `(kH, kW)`, or `(C, kH, kW)` where the channels differ."""
    image = read_image(path)
    if len(image.values) != 1:
        raise ShapeError(
            f"kernel '{path}' should be one plane, but is a stack of shape {image.shape}; give one for each "
            "channel as channels of one picture, as an array (C, kH, kW), or as files of their own."
        )
    channels = image.values[0]
    return channels[0] if bool((channels == channels[0]).all()) else channels


def _is_unit_sum(taps: torch.Tensor, stored: torch.Tensor) -> bool:
    return stored.is_floating_point() and bool(((_sums(taps) - 1).abs() <= UNIT_SUM).all())


def _sums(taps: torch.Tensor) -> torch.Tensor:
    """Add up the taps of each channel, or of each output channel, with axes to divide by: shape `(C, 1, ...)`."""
    axes = (1, 2, 3) if taps.ndim == 4 else (-2, -1)
    return taps.to(torch.float64).sum(dim=axes, keepdim=True)


def _channel_notes(taps: torch.Tensor) -> tuple[str, ...]:
    if taps.ndim != 3:
        return ()
    return (f"there is a kernel for each of {len(taps)} channels, and each channel is taken by itself",)


def _orientation_notes(taps: torch.Tensor, held: Convention) -> tuple[str, ...]:
    """Warn of an array that is not flipped, if that matters and nobody said so."""
    is_layer = taps.ndim == 4 and taps.shape[1] > 1
    wide = taps.to(torch.float64)
    is_symmetric = bool((wide - wide.flip((-2, -1))).abs().max() <= 1e-3 * wide.abs().max())
    if held is Convention.CONVOLUTION or is_layer or is_symmetric:
        return ()
    return (
        "the kernel is not symmetric, and its array was taken for the taps of a cross-correlation, as conv2d applies "
        'them; if it holds a point-spread function as a camera sees it, choose convention="convolution"; '
        'convention="correlation" confirms this one',
    )


def _sum_notes(taps: torch.Tensor) -> tuple[str, ...]:
    """Say that the taps were not divided by their sum, where that changes the brightness."""
    sums = _sums(taps).flatten()
    if (taps.ndim == 4 and taps.shape[1] > 1) or bool(((sums - 1).abs() <= UNIT_SUM).all()):
        return ()
    return (
        f"the taps of the kernel add up to {_listed(sums)} and were taken as they are, so that an estimate has the "
        "brightness of the data divided by that; normalize=True divides the taps by their sum",
    )


def _listed(sums: torch.Tensor) -> str:
    listed = ", ".join(f"{float(value):g}" for value in sums.flatten()[:8])
    return f"{listed}{', ...' if sums.numel() > 8 else ''}"


def _bias_notes(layer: Layer, is_taken: bool) -> tuple[str, ...]:
    if layer.bias is None:
        return ()
    if not is_taken:
        return (f"the bias '{layer.bias_name}' was left out",)
    return (
        f"the bias '{layer.bias_name}' of {layer.bias.numel()} numbers was read too and is subtracted from outputs "
        "before they are inverted, or added in the forward direction",
    )


def _as_floating(stored: torch.Tensor) -> torch.Tensor:
    return stored if stored.dtype == torch.float64 else stored.to(torch.float32)


def _divided(path: Path, taps: torch.Tensor) -> tuple[torch.Tensor, str]:
    sums = _sums(taps)
    if bool((sums == 0).any()):
        raise UsageError(f"kernel '{path}' cannot be divided by its sum, which is zero; pass normalize=False.")
    return taps.to(torch.float64) / sums, f"the taps were divided by their sum ({_listed(sums)})"
