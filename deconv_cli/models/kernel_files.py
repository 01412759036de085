"""Reading a kernel: a tensor as `torch.nn.functional.conv2d` takes it, or a picture of a point-spread function."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.io.formats import codec_of_content, suffix_note
from deconv_cli.io.samples import check_finite
from deconv_cli.io.sources import open_source
from deconv_cli.io.tensors import TensorCodec
from deconv_cli.models.layers import Layer, read_layer
from deconv_cli.models.psf_pictures import read_psf_picture
from deconv_cli.vocabulary import Convention


@dataclass(frozen=True, eq=False)
class KernelFile:
    """A kernel as read, its taps in the order of a cross-correlation.

    Attributes:
        path: the file.
        kernel: float32 or float64, shape `(kH, kW)` or `(C_out, C_in, kH, kW)`.
        bias: what the layer adds to each output channel, shape `(C_out,)`.
        layer: the layer of a model that the kernel was taken from.
        convention: what the file held.
        sha256: fingerprint of the file.
        notes: what was done on reading, a sentence each.
    """

    path: Path
    kernel: torch.Tensor
    bias: torch.Tensor | None
    layer: str | None
    convention: Convention
    sha256: str
    notes: tuple[str, ...]


def read_kernel(
    path: Path,
    *,
    layer: str | None = None,
    bias: bool = True,
    convention: Convention | None = None,
    normalize: bool | None = None,
) -> KernelFile:
    """Read a kernel from a file of any format understood.

    Args:
        path: the file; its format is recognized by its content.
        layer: name of a layer or a tensor in a file of several.
        bias: read the bias of the layer too, if it has one.
        convention: what the file holds; None for a convolution in pictures and a correlation in tensor files.
        normalize: divide by the sum of the taps (for each output channel, if there are four axes); None divides
            pictures of whole numbers only.

    Raises:
        UsageError: no such file or layer, or a sum of zero that should be divided by.
        ShapeError: neither two nor four axes, or a picture whose channels differ.
        InputRefusedError: damaged, unsafe, too large, empty, all zero, not finite, or no plain convolution.
    """
    head, sha256 = open_source(path)
    codec = codec_of_content(path, head)
    notes = suffix_note(path, codec)
    if isinstance(codec, TensorCodec):
        found = read_layer(path, codec, head, layer)
    elif layer is not None:
        raise UsageError(f"layer=\"{layer}\" chooses among named tensors, but '{path}' is a {codec.name} file.")
    else:
        found = Layer(None, read_psf_picture(path))
    check_finite(path, found.weight, "kernel")
    if not bool(found.weight.any()):
        raise MalformedInputError(f"kernel '{path}' should have taps, but all of them are zero.")
    held = convention or (Convention.CONVOLUTION if codec.is_picture else Convention.CORRELATION)
    divides = codec.is_picture and not found.weight.is_floating_point() if normalize is None else normalize
    kernel, division = _divided(path, found.weight) if divides else (_as_floating(found.weight), ())
    if held is Convention.CONVOLUTION:
        kernel = kernel.flip((-2, -1))
        notes += ("the file holds a convolution, so its taps were flipped along both axes",)
    notes = (*notes, *division, *found.notes, *_bias_notes(found, bias))
    taken = _as_floating(found.bias) if bias and found.bias is not None else None
    return KernelFile(path, kernel.contiguous(), taken, found.name, held, sha256, notes)


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


def _divided(path: Path, stored: torch.Tensor) -> tuple[torch.Tensor, tuple[str, ...]]:
    wide = stored.to(torch.float64)
    sums = wide.sum(dim=(-2, -1)) if stored.ndim == 2 else wide.sum(dim=(1, 2, 3))
    if bool((sums == 0).any()):
        raise UsageError(f"kernel '{path}' cannot be divided by its sum, which is zero; pass normalize=False.")
    divided = wide / (sums if stored.ndim == 2 else sums[:, None, None, None])
    listed = ", ".join(f"{float(value):g}" for value in sums.flatten()[:8])
    note = f"the taps were divided by their sum ({listed}{', ...' if sums.numel() > 8 else ''})"
    return divided if stored.dtype == torch.float64 else divided.to(torch.float32), (note,)
