"""The convolutions of a model file: their weights, their biases, and all that torch calls their geometry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.io.samples import check_finite
from deconv_cli.io.sources import refusing_damage
from deconv_cli.models.model_files import ModelFile
from deconv_cli.vocabulary import counted

GEOMETRY = ("stride", "padding", "dilation", "groups", "output_padding")
KINDS = {f"{name}{n}d" for name in ("Conv", "ConvTranspose") for n in (1, 2, 3)}
MAX_LISTED = 8


@dataclass(frozen=True, eq=False)
class ModelLayer:
    """A convolution of a model.

    Attributes:
        name: of the layer in the model.
        weight: shape `(C_out, C_in / groups, *k)`, or `(C_in, C_out / groups, *k)` of a transposed convolution.
        bias: shape `(C_out,)`; `None` for none.
        kind: the class of torch, as `Conv2d`; `None` where the file holds nothing but weights.
        geometry: `stride`, `padding`, `dilation`, `groups`, `output_padding`, `transposed` and `padding_mode` as torch
            has them, whole numbers and words; empty where the file holds nothing but weights.
    """

    name: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    kind: str | None = None
    geometry: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Describe the layer as JSON."""
        has_bias = self.bias is not None
        return {
            "name": self.name,
            "kind": self.kind,
            "shape": list(self.weight.shape),
            "bias": has_bias,
            **self.geometry,
        }


def list_layers(stored: ModelFile, module: nn.Module | None = None) -> list[ModelLayer]:
    """List the convolutions of a model, in its order.

    Args:
        stored: what the file holds.
        module: the model with the file's weights, where its class is known from elsewhere.

    Raises:
        MalformedInputError: a module that torch cannot walk.
    """
    found = module if module is not None else stored.module
    if found is None and stored.exported is not None:
        state = {name: value for name, value in stored.exported.module.state_dict().items() if torch.is_tensor(value)}
        return list(_of_state(state))
    if found is None:
        return list(_of_state(stored.state or {}))
    with refusing_damage(stored.path, "a model as torch saves it"):
        return list(_of_module(found))


def find_layer(stored: ModelFile, layers: list[ModelLayer], name: str | None) -> ModelLayer:
    """Give the layer of a name, or the only one.

    Raises:
        UsageError: no layer of this name, or several and no name.
        MalformedInputError: there is no convolution at all, or its weights are not finite.
    """
    if not layers:
        raise MalformedInputError(f"'{stored.path}' should hold a convolution, but holds none.")
    chosen = [layer for layer in layers if layer.name == name] if name is not None else layers
    if len(chosen) != 1:
        listed = ", ".join(layer.name for layer in layers[:MAX_LISTED])
        more = f" and {len(layers) - MAX_LISTED} more" if len(layers) > MAX_LISTED else ""
        what = f"no convolution named '{name}'" if name is not None else counted(len(layers), "convolution")
        raise UsageError(f"'{stored.path}' holds {what}; choose among {listed}{more} with layer=\"NAME\".")
    layer = chosen[0]
    check_finite(stored.path, layer.weight, "kernel")
    if layer.bias is not None:
        check_finite(stored.path, layer.bias, "bias")
    return layer


def _of_module(module: nn.Module) -> Iterator[ModelLayer]:
    for name, each in module.named_modules():
        kind = getattr(each, "original_name", type(each).__name__)  # TorchScript keeps the class by its name alone
        is_script = isinstance(each, torch.jit.ScriptModule) and kind in KINDS
        if not is_script and not isinstance(each, _ConvNd):
            continue
        transposed = kind.startswith("ConvTranspose") if is_script else isinstance(each, _ConvTransposeNd)
        geometry = geometry_of(each, transposed=transposed)
        bias = getattr(each, "bias", None)
        yield ModelLayer(name or kind, each.weight.detach(), None if bias is None else bias.detach(), kind, geometry)


def geometry_of(layer: nn.Module, *, transposed: bool) -> dict[str, Any]:
    """Give what `ModelLayer.geometry` says of a convolution of torch."""
    geometry: dict[str, Any] = {key: _plain(getattr(layer, key, None)) for key in GEOMETRY}
    geometry |= {"transposed": transposed, "padding_mode": str(getattr(layer, "padding_mode", "zeros"))}
    return _without_idle(geometry)


def _without_idle(geometry: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is of transposed convolutions alone."""
    return geometry if geometry["transposed"] else {k: v for k, v in geometry.items() if k != "output_padding"}


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple | list) else value


def _of_state(state: dict[str, torch.Tensor]) -> Iterator[ModelLayer]:
    """Take every tensor of three to five axes for the weight of a convolution: the file says nothing of its use."""
    for name, tensor in state.items():
        if tensor.ndim not in (3, 4, 5) or not tensor.is_floating_point() or not tensor.numel():
            continue
        owner = name.removesuffix(".weight")
        bias = state.get(f"{owner}.bias") if owner != name else None
        fits = bias is not None and bias.ndim == 1
        yield ModelLayer(owner, tensor, bias if fits else None)
