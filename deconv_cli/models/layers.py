"""Layers of a model: the weight of a convolution in a file of named tensors, and its bias."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from deconv_cli.errors import MalformedInputError, ShapeError, UnsafeInputError, UsageError
from deconv_cli.io.codecs.torch_file import TorchFile
from deconv_cli.io.samples import as_real_tensor, check_finite
from deconv_cli.io.sources import refusing_damage
from deconv_cli.io.tensors import TensorCodec, TensorFile, describe_tensors, open_tensors
from deconv_cli.io.weights_only import check_dense, load_weights_only, named_tensors
from deconv_cli.models.model_format import model_format
from deconv_cli.models.model_layers import GEOMETRY, geometry_of
from deconv_cli.models.whole_modules import check_module, torch_globals

_SETTINGS = (*GEOMETRY, "transposed", "padding_mode")
_WORDS = {"padding": ("same", "valid"), "padding_mode": ("zeros", "reflect", "replicate", "circular")}
_MAX_STEP = 2**31
"""Strides and the rest are smaller than this."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution of a model, as stored: its name, its weight, and its bias of shape `(C_out,)` where it has one.

    `geometry` is what the file says of its stride, padding and the rest, as `ModelLayer.geometry`; else empty.
    """

    name: str | None
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    bias_name: str = ""
    geometry: dict[str, Any] = field(default_factory=dict)


def read_layer(path: Path, codec: TensorCodec, head: bytes, layer: str | None) -> Layer:
    """Read one layer of a model by its name or that of its weight, or the only kernel of a file of tensors.

    Raises:
        UsageError: no layer of this name.
        ShapeError: a weight of one axis or of more than five, or a bias that does not fit it.
        InputRefusedError: unsafe, damaged, several kernels and no name, or a layer that is no convolution.
    """
    is_torch = isinstance(codec, TorchFile)
    opened, module = open_torch_file(path, head) if is_torch else (open_tensors(path, codec), None)
    name = _find(opened, layer) if layer is not None else _only_kernel(opened)
    geometry = _own_geometry(path, module, name) if module is not None else _recorded_geometry(opened, name)
    if 0 in opened.shapes[name]:
        raise MalformedInputError(f"kernel '{path}' is empty: its shape is {opened.shapes[name]}.")
    weight = as_real_tensor(path, opened.read(name))
    if not 1 <= weight.ndim <= 5:
        raise ShapeError(
            f"kernel '{path}' should be of shape (kH, kW), (C, kH, kW) or (C_out, C_in, kH, kW), or have one to three "
            f"axes of space likewise, but is {tuple(weight.shape)}."
        )
    geometry = geometry if weight.ndim >= 3 else {}  # that of the layer says nothing of its bias
    bias_name = f"{name.rpartition('.')[0]}.bias".removeprefix(".")
    has_bias = weight.ndim >= 3 and name.endswith("weight") and bias_name in opened.shapes
    bias = _read_bias(opened, bias_name, weight, geometry) if has_bias else None
    return Layer(name.removesuffix(".weight") or None, weight, bias, bias_name, geometry)


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
    is_weight = {name: len(shape) in (3, 5) and name.endswith("weight") for name, shape in opened.shapes.items()}
    candidates = [name for name, shape in opened.shapes.items() if len(shape) == 4 or is_weight[name]]
    if len(opened.shapes) == 1:
        candidates = list(opened.shapes)
    if len(candidates) == 1:
        return candidates[0]
    listed = {name: opened.shapes[name] for name in candidates} or opened.shapes
    raise MalformedInputError(
        f"'{opened.path}' should hold one kernel, but holds {describe_tensors(listed)}; choose one with layer=\"NAME\"."
    )


def _own_geometry(path: Path, module: nn.Module, name: str) -> dict[str, Any]:
    """Read stride, padding and the rest off the layer that a weight belongs to; refuse what is no convolution."""
    with refusing_damage(path, "a model as torch saves it"):
        owner = module.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, _ConvNd):
            return _checked(path, geometry_of(owner, transposed=isinstance(owner, _ConvTransposeNd)))
        described = " ".join(repr(owner).split())[:200]
    raise MalformedInputError(
        f"'{name}' of '{path}' should belong to a convolution, but its layer is {described}; only convolutions are "
        "undone."
    )


def _recorded_geometry(opened: TensorFile, name: str) -> dict[str, Any]:
    """Read what `deconv kernel extract` recorded of the layer that it wrote; empty for any other file."""
    layer = (opened.record or {}).get("layer")
    is_own = isinstance(layer, dict) and f"{layer.get('name')}.weight" == name and "stride" in layer
    if not isinstance(layer, dict) or not is_own:
        return {}
    return _checked(opened.path, {key: value for key, value in layer.items() if key in _SETTINGS})


def _checked(path: Path, geometry: dict[str, Any]) -> dict[str, Any]:
    """Refuse a geometry that is none of torch's: a file may say anything."""
    for name, value in geometry.items():
        numbers = value if isinstance(value, list) and value else [value]
        is_whole = all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < _MAX_STEP for n in numbers)
        is_word = name in ("padding", "padding_mode") and value in _WORDS[name]
        if not (is_whole and name != "padding_mode") and not is_word and not (name == "transposed" and value in (0, 1)):
            raise MalformedInputError(f"'{path}' should hold a layer of torch, but its {name} is {str(value)[:80]!r}.")
    return geometry


def _read_bias(opened: TensorFile, name: str, weight: torch.Tensor, geometry: dict[str, Any]) -> torch.Tensor:
    """Read the bias of a layer; weights alone do not tell whether the layer is transposed, and in how many groups."""
    shape = opened.shapes[name]
    n_first, n_second = weight.shape[:2]
    fits = shape == (n_first,) and not geometry.get("transposed")
    if geometry.get("transposed", not geometry):
        fits = fits or (len(shape) == 1 and shape[0] > 0 and shape[0] % n_second == 0)
    if not fits:
        raise ShapeError(f"bias '{name}' of '{opened.path}' should be of shape ({n_first},), but is {shape}.")
    bias = as_real_tensor(opened.path, opened.read(name))
    check_finite(opened.path, bias, "bias")
    return bias
