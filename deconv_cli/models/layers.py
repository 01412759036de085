"""Layers of a model: the weight of a convolution in a file of named tensors, and its bias."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from deconv_cli.errors import MalformedInputError, ShapeError, UnsafeInputError, UsageError
from deconv_cli.io.codecs.torch_file import TorchFile
from deconv_cli.io.samples import as_real_tensor, check_finite
from deconv_cli.io.sources import refusing_damage
from deconv_cli.io.tensors import TensorCodec, TensorFile, describe_tensors, open_tensors
from deconv_cli.io.weights_only import check_dense, load_weights_only, named_tensors
from deconv_cli.models.model_format import model_format
from deconv_cli.models.whole_modules import check_module, torch_globals


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution of a model, as stored: its name, its weight, and its bias of shape `(C_out,)` where it has one."""

    name: str | None
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    bias_name: str = ""
    notes: tuple[str, ...] = ()


def read_layer(path: Path, codec: TensorCodec, head: bytes, layer: str | None) -> Layer:
    """Read one layer of a model by its name or that of its weight, or the only kernel of a file of tensors.

    Raises:
        UsageError: no layer of this name.
        ShapeError: a weight of one axis or of more than four, or a bias that does not fit it.
        InputRefusedError: unsafe, damaged, several kernels and no name, or a layer that is no plain convolution.
    """
    is_torch = isinstance(codec, TorchFile)
    opened, module = open_torch_file(path, head) if is_torch else (open_tensors(path, codec), None)
    name = _find(opened, layer) if layer is not None else _only_kernel(opened)
    notes = _settings_notes(path, module, name) if module is not None else ()
    if 0 in opened.shapes[name]:
        raise MalformedInputError(f"kernel '{path}' is empty: its shape is {opened.shapes[name]}.")
    weight = as_real_tensor(path, opened.read(name))
    if not 1 <= weight.ndim <= 5:
        raise ShapeError(
            f"kernel '{path}' should be of shape (kH, kW), (C, kH, kW) or (C_out, C_in, kH, kW), or have one to three "
            f"axes of space likewise, but is {tuple(weight.shape)}."
        )
    bias_name = f"{name.rpartition('.')[0]}.bias".removeprefix(".")
    has_bias = weight.ndim >= 3 and name.endswith("weight") and bias_name in opened.shapes
    bias = _read_bias(opened, bias_name, weight.shape[0]) if has_bias else None
    return Layer(name.removesuffix(".weight") or None, weight, bias, bias_name, notes)


def open_torch_file(path: Path, head: bytes) -> tuple[TensorFile, nn.Module | None]:
    """List the tensors of what `torch.save` wrote, and give the module if it is a whole one."""
    kind = model_format(path, head)
    if kind.is_program:
        raise UnsafeInputError(
            f"'{path}' is a file of the kind {kind}, which can run its own code and is not opened for a kernel; save "
            "its state_dict() with torch.save instead."
        )
    found = load_weights_only(path, torch_globals())
    module = found if isinstance(found, nn.Module) else None
    if module is not None:
        check_module(path, module)
        found = module.state_dict()
    tensors = named_tensors(path, found)
    if not tensors:
        raise MalformedInputError(f"'{path}' should hold a tensor, but holds none.")
    for name, tensor in tensors.items():
        check_dense(path, tensor, name)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return TensorFile(path, shapes, lambda name: tensors[name], None), module


def _find(opened: TensorFile, layer: str) -> str:
    for name in (f"{layer}.weight", layer):
        if name in opened.shapes and name:
            return name
    if list(opened.shapes) == [""]:
        raise UsageError(f"'{opened.path}' holds a single tensor without a name; leave out layer=\"{layer}\".")
    raise UsageError(f"'{opened.path}' holds no layer named '{layer}', only {describe_tensors(opened.shapes)}.")


def _only_kernel(opened: TensorFile) -> str:
    candidates = [name for name, shape in opened.shapes.items() if len(shape) == 4]
    if len(opened.shapes) == 1:
        candidates = list(opened.shapes)
    if len(candidates) == 1:
        return candidates[0]
    listed = {name: opened.shapes[name] for name in candidates} or opened.shapes
    raise MalformedInputError(
        f"'{opened.path}' should hold one kernel, but holds {describe_tensors(listed)}; choose one with layer=\"NAME\"."
    )


def _settings_notes(path: Path, module: nn.Module, name: str) -> tuple[str, ...]:
    """Refuse a layer that does more than to convolve with its weight, and say how it pads."""
    with refusing_damage(path, "a model as torch saves it"):
        owner = module.get_submodule(name.rpartition(".")[0])
        is_plain = isinstance(owner, nn.Conv2d) and all(
            setting in (1, (1, 1)) for setting in (owner.stride, owner.dilation, owner.groups)
        )
        if is_plain:
            return (f"the layer itself pads by {owner.padding} with padding_mode='{owner.padding_mode}'",)
        described = " ".join(repr(owner).split())[:200]
    raise MalformedInputError(
        f"'{name}' of '{path}' should belong to a Conv2d with stride 1, dilation 1 and groups 1, but its layer is "
        f"{described}; only plain convolutions are undone."
    )


def _read_bias(opened: TensorFile, name: str, n_outputs: int) -> torch.Tensor:
    if opened.shapes[name] != (n_outputs,):
        raise ShapeError(
            f"bias '{name}' of '{opened.path}' should be of shape ({n_outputs},), but is {opened.shapes[name]}."
        )
    bias = as_real_tensor(opened.path, opened.read(name))
    check_finite(opened.path, bias, "bias")
    return bias
