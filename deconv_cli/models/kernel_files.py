"""Reading a kernel: a tensor as `torch.nn.functional.conv2d` takes it, or a picture of a point-spread function."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from deconv_cli.errors import MalformedInputError, ShapeError, UsageError
from deconv_cli.io.formats import codec_of_content, suffix_note
from deconv_cli.io.image import read_image
from deconv_cli.io.samples import as_real_tensor, check_finite
from deconv_cli.io.sources import open_source
from deconv_cli.io.tensors import TensorCodec, TensorFile, describe_tensors, open_tensors
from deconv_cli.vocabulary import Convention

Taps = tuple[torch.Tensor, torch.Tensor | None, str | None]


@dataclass(frozen=True, eq=False)
class KernelFile:
    """A kernel as read, its taps in the order of a cross-correlation."""

    path: Path
    kernel: torch.Tensor
    """float32 or float64, shape (kH, kW) or (C_out, C_in, kH, kW)."""
    bias: torch.Tensor | None
    """Shape (C_out,)."""
    layer: str | None
    """The layer of a model that the kernel was taken from."""
    convention: Convention
    """What the file held."""
    sha256: str
    notes: tuple[str, ...]
    """What was done on reading, a sentence each."""


def read_kernel(
    path: Path,
    *,
    layer: str | None = None,
    convention: Convention | None = None,
    normalize: bool | None = None,
) -> KernelFile:
    """Read a kernel from a file of any format understood.

    Args:
        path: the file; its format is told from its content.
        layer: name of a layer or a tensor in a file of several.
        convention: what the file holds; None for a convolution in pictures and a correlation in tensor files.
        normalize: divide by the sum of the taps (for each output channel, if there are four axes); None divides
            pictures of whole numbers only.

    Raises:
        UsageError: no such file or layer, or a sum of zero that should be divided by.
        ShapeError: neither two nor four axes, or a picture whose channels differ.
        InputRefusedError: damaged, unsafe, too large, empty, all zero or not finite.
    """
    path = Path(path)
    head, sha256 = open_source(path)
    codec = codec_of_content(path, head)
    notes = suffix_note(path, codec)
    if not isinstance(codec, TensorCodec):
        if layer is not None:
            raise UsageError(f"--layer chooses among named tensors, but '{path}' is a {codec.name} file.")
        stored, bias, name = _picture_taps(path), None, None
    else:
        stored, bias, name = _tensor_taps(path, codec, layer)
    _check_taps(path, stored)
    held = convention or (Convention.CONVOLUTION if codec.is_picture else Convention.CORRELATION)
    divides = normalize if normalize is not None else codec.is_picture and not stored.is_floating_point()
    kernel, division = _divided(path, stored) if divides else (_as_floating(stored), ())
    if held is Convention.CONVOLUTION:
        kernel = kernel.flip((-2, -1))
        notes += ("the file holds a convolution, so its taps were flipped along both axes",)
    return KernelFile(path, kernel.contiguous(), bias, name, held, sha256, (*notes, *division))


def _picture_taps(path: Path) -> torch.Tensor:
    image = read_image(path)
    n_planes, n_channels = image.values.shape[:2]
    if n_planes != 1:
        raise ShapeError(f"kernel '{path}' should be one plane, but is a stack of shape {image.shape}.")
    first = image.values[0, 0]
    if n_channels > 1 and not bool((image.values[0] == first).all()):
        raise ShapeError(
            f"kernel '{path}' of shape {image.shape} should be gray or have equal channels, but they differ; save "
            "one channel, or the kernel of each as a tensor (C_out, C_in, kH, kW)."
        )
    return first


def _tensor_taps(path: Path, codec: TensorCodec, layer: str | None) -> Taps:
    opened = open_tensors(path, codec)
    name = _named(opened, layer) if layer is not None else _only_kernel(opened)
    stored = as_real_tensor(path, opened.read(name)) if 0 not in opened.shapes[name] else None
    if stored is None:
        raise MalformedInputError(f"kernel '{path}' is empty: its shape is {opened.shapes[name]}.")
    if stored.ndim not in (2, 4):
        raise ShapeError(
            f"kernel '{path}' should be of shape (kH, kW) or (C_out, C_in, kH, kW), but is {tuple(stored.shape)}."
        )
    return stored, _bias_of(opened, name), (name.removesuffix(".weight") or None)


def _named(opened: TensorFile, layer: str) -> str:
    for name in (f"{layer}.weight", layer):
        if name in opened.shapes and name:
            return name
    if list(opened.shapes) == [""]:
        raise UsageError(f"'{opened.path}' holds a single tensor without a name; leave out --layer.")
    raise UsageError(f"'{opened.path}' holds no layer named '{layer}', only {describe_tensors(opened.shapes)}.")


def _only_kernel(opened: TensorFile) -> str:
    candidates = [name for name, shape in opened.shapes.items() if len(shape) == 4]
    if len(opened.shapes) == 1:
        candidates = list(opened.shapes)
    if len(candidates) == 1:
        return candidates[0]
    listed = {name: opened.shapes[name] for name in candidates} or opened.shapes
    raise MalformedInputError(
        f"'{opened.path}' should hold one kernel, but holds {describe_tensors(listed)}; choose with --layer NAME."
    )


def _bias_of(opened: TensorFile, name: str) -> torch.Tensor | None:
    sibling = f"{name.rpartition('.')[0]}.bias".removeprefix(".")
    n_outputs = opened.shapes[name][0]
    if len(opened.shapes[name]) != 4 or not name.endswith("weight") or sibling not in opened.shapes:
        return None
    if opened.shapes[sibling] != (n_outputs,):
        raise ShapeError(
            f"bias '{sibling}' of '{opened.path}' should be of shape ({n_outputs},), but is {opened.shapes[sibling]}."
        )
    bias = as_real_tensor(opened.path, opened.read(sibling))
    check_finite(opened.path, bias, "bias")
    return _as_floating(bias)


def _check_taps(path: Path, stored: torch.Tensor) -> None:
    check_finite(path, stored, "kernel")
    if not bool(stored.any()):
        raise MalformedInputError(f"kernel '{path}' should have taps, but all of them are zero.")


def _as_floating(stored: torch.Tensor) -> torch.Tensor:
    return stored if stored.dtype == torch.float64 else stored.to(torch.float32)


def _divided(path: Path, stored: torch.Tensor) -> tuple[torch.Tensor, tuple[str, ...]]:
    wide = stored.to(torch.float64)
    sums = wide.sum(dim=(-2, -1)) if stored.ndim == 2 else wide.sum(dim=(1, 2, 3))
    if bool((sums == 0).any()):
        raise UsageError(f"kernel '{path}' cannot be divided by its sum, which is zero; pass --keep-sum.")
    divided = wide / (sums if stored.ndim == 2 else sums[:, None, None, None])
    listed = ", ".join(f"{float(value):g}" for value in sums.flatten()[:8])
    note = f"the taps were divided by their sum ({listed}{', ...' if sums.numel() > 8 else ''})"
    return divided if stored.dtype == torch.float64 else divided.to(torch.float32), (note,)
