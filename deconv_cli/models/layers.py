"""The convolutions of a model file: their weights, their biases, and their geometry as torch has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from deconv_cli.errors import MalformedInputError, ShapeError, UsageError
from deconv_cli.io.codecs.tensor_codecs import TorchFile
from deconv_cli.io.codecs.torch_weights import load_weights_only, tensors_in
from deconv_cli.io.files import refusing_damage
from deconv_cli.io.layout import as_real_tensor, check_finite
from deconv_cli.io.tensors import TensorCodec, TensorFile, describe_tensors, open_tensors
from deconv_cli.models.model_files import ModelFile, check_module, torch_globals
from deconv_cli.vocabulary import counted, name_some

_GEOMETRY = ("stride", "padding", "dilation", "groups", "output_padding")
_SETTINGS = (*_GEOMETRY, "transposed", "padding_mode")
_WORDS = {"padding": ("same", "valid"), "padding_mode": ("zeros", "reflect", "replicate", "circular")}
_MAX_STEP = 2**31
"""Strides and the rest are smaller than this."""


@dataclass(frozen=True, eq=False)
class ModelLayer:
    """A convolution of a model.

    Attributes:
        name: of the layer in the model; empty for a bare tensor.
        weight: shape `(C_out, C_in / groups, *k)`, or `(C_in, C_out / groups, *k)` of a transposed convolution.
        bias: shape `(C_out,)`; `None` for none.
        kind: the class of torch, as `Conv2d`; `None` where the file holds nothing but weights.
        geometry: `stride`, `padding`, `dilation`, `groups`, `output_padding`, `transposed` and `padding_mode` as torch
            has them, whole numbers and words; empty where the file holds nothing but weights.
    """

    name: str
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    kind: str | None = None
    geometry: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Describe the layer as JSON."""
        described = {"name": self.name, "kind": self.kind, "shape": list(self.weight.shape)}
        return {**described, "bias": self.bias is not None, **self.geometry}


def list_layers(stored: ModelFile, module: nn.Module | None = None) -> list[ModelLayer]:
    """List the convolutions of a model file in their order.

    `module` is the model where its class is known from elsewhere. A module that torch cannot walk raises a
    `MalformedInputError`.
    """
    found = module if module is not None else stored.module
    if found is None:
        return list(_of_state(stored.state or {}))
    with refusing_damage(stored.path, "a model as torch saves it"):
        return list(_of_module(found))


def _of_module(module: nn.Module) -> Iterator[ModelLayer]:
    for name, each in module.named_modules():
        if isinstance(each, _ConvNd):
            kind, bias = type(each).__name__, None if each.bias is None else each.bias.detach()
            yield ModelLayer(name or kind, each.weight.detach(), bias, kind, _geometry_of(each))


def _of_state(state: dict[str, torch.Tensor]) -> Iterator[ModelLayer]:
    """Take every tensor of three to five axes for the weight of a convolution: the file does not describe its use."""
    for name, tensor in state.items():
        if tensor.ndim not in (3, 4, 5) or not tensor.is_floating_point() or not tensor.numel():
            continue
        owner = name.removesuffix(".weight")
        bias = state.get(f"{owner}.bias") if owner != name else None
        yield ModelLayer(owner, tensor, bias if bias is not None and bias.ndim == 1 else None)


def _geometry_of(layer: _ConvNd) -> dict[str, Any]:
    transposed = isinstance(layer, _ConvTransposeNd)
    values = {key: getattr(layer, key, None) for key in _GEOMETRY if transposed or key != "output_padding"}
    geometry: dict[str, Any] = {k: list(v) if isinstance(v, tuple | list) else v for k, v in values.items()}
    return geometry | {"transposed": transposed, "padding_mode": str(getattr(layer, "padding_mode", "zeros"))}


def find_layer(stored: ModelFile, layers: list[ModelLayer], name: str | None) -> ModelLayer:
    """Choose the layer of a name, or the only one.

    Raises:
        UsageError: no layer of this name, or several and no name.
        MalformedInputError: there is no convolution at all, or its weights are not finite.
    """
    if not layers:
        raise MalformedInputError(f"'{stored.path}' should hold a convolution, but holds none.")
    chosen = [layer for layer in layers if layer.name == name] if name is not None else layers
    if len(chosen) != 1:
        listed = name_some((layer.name for layer in layers), 8)
        what = f"no convolution named '{name}'" if name is not None else counted(len(layers), "convolution")
        raise UsageError(f"'{stored.path}' holds {what}; choose among {listed} with layer=\"NAME\".")
    check_finite(stored.path, chosen[0].weight, "kernel")
    if chosen[0].bias is not None:
        check_finite(stored.path, chosen[0].bias, "bias")
    return chosen[0]


def read_layer(path: Path, codec: TensorCodec, layer: str | None) -> tuple[ModelLayer, str]:
    """Read one layer by its name, or the only kernel of a file; return the name of its bias, too.

    Raises:
        UsageError: no layer of this name, or several and no name.
        ShapeError: a weight of one axis or of more than five, or a bias that does not fit it.
        InputRefusedError: unsafe, damaged, or a layer that is no convolution.
    """
    is_torch = isinstance(codec, TorchFile)
    opened, module = open_torch_file(path) if is_torch else (open_tensors(path, codec), None)
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
    geometry = geometry if weight.ndim >= 3 else {}  # that of a layer; this tensor is its bias
    bias_name = f"{name.rpartition('.')[0]}.bias".removeprefix(".")
    has_bias = weight.ndim >= 3 and name.endswith("weight") and bias_name in opened.shapes
    bias = _read_bias(opened, bias_name, weight, geometry) if has_bias else None
    return ModelLayer(name.removesuffix(".weight"), weight, bias, geometry=geometry), bias_name


def open_torch_file(path: Path) -> tuple[TensorFile, nn.Module | None]:
    """List the tensors of a file of `torch.save`; return its module, too, if it is a whole one."""
    found = load_weights_only(path, torch_globals())
    module = found if isinstance(found, nn.Module) else None
    if module is not None:
        check_module(path, module)
        found = module.state_dict()
    opened = tensors_in(path, found)
    if not opened.shapes:
        raise MalformedInputError(f"'{path}' should hold a tensor, but holds none.")
    return opened, module


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
    raise UsageError(
        f"'{opened.path}' should hold one kernel, but holds {describe_tensors(listed)}; choose one with layer=\"NAME\"."
    )


def _own_geometry(path: Path, module: nn.Module, name: str) -> dict[str, Any]:
    """Read the geometry of the layer that a weight belongs to; refuse other layers than convolutions."""
    with refusing_damage(path, "a model as torch saves it"):
        owner = module.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, _ConvNd):
            return _checked(path, _geometry_of(owner))
        described = " ".join(repr(owner).split())[:200]
    raise MalformedInputError(
        f"'{name}' of '{path}' must belong to a convolution, but its layer is {described}; deconv undoes only "
        "convolutions."
    )


def _recorded_geometry(opened: TensorFile, name: str) -> dict[str, Any]:
    """Read the geometry that `deconv kernel extract` recorded with the layer; empty for any other file."""
    layer = (opened.record or {}).get("layer")
    is_own = isinstance(layer, dict) and f"{layer.get('name')}.weight" == name and "stride" in layer
    if not isinstance(layer, dict) or not is_own:
        return {}
    return _checked(opened.path, {key: value for key, value in layer.items() if key in _SETTINGS})


def _checked(path: Path, geometry: dict[str, Any]) -> dict[str, Any]:
    """Refuse values that torch does not know: a file may hold anything."""
    for name, value in geometry.items():
        numbers = value if isinstance(value, list) and value else [value]
        is_whole = all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < _MAX_STEP for n in numbers)
        is_word = name in ("padding", "padding_mode") and value in _WORDS[name]
        if not (is_whole and name != "padding_mode") and not is_word and not (name == "transposed" and value in (0, 1)):
            raise MalformedInputError(f"'{path}' should hold a layer of torch, but its {name} is {str(value)[:80]!r}.")
    return geometry


def _read_bias(opened: TensorFile, name: str, weight: torch.Tensor, geometry: dict[str, Any]) -> torch.Tensor:
    """Read the bias of a layer; a bare weight may belong to a transposed layer, in any number of groups."""
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
