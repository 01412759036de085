"""The input of a model, read off its first layer where that is certain."""

from __future__ import annotations

import contextlib
import inspect

import torch
from torch import nn

from deconv_cli.errors import UsageError
from deconv_cli.gradients.input_spec import InputSpec
from deconv_cli.gradients.subject import Subject

_BATCH = 4
_TIME = 12
_MAX_ELEMENTS = 2**24
_SIDES = (28, 32, 64, 96, 128, 224, 256, 299, 16, 8)

_PICTURES = {
    784: [InputSpec((_BATCH, 1, 28, 28))],
    1024: [InputSpec((_BATCH, 1, 32, 32))],
    3072: [InputSpec((_BATCH, 3, 32, 32))],
}
"""A linear layer may stand behind a flattening of the usual pictures."""


def guess_inputs(model: nn.Module, default: torch.dtype, seed: int) -> tuple[InputSpec, str]:
    """Read the shape of the input off the first layer.

    Where the layer leaves the height and width open, usual ones are tried, and the first that runs is taken.

    Returns:
        The shape, and a note that says where it came from.

    Raises:
        UsageError: it is not certain.
    """
    wants = _n_inputs(model)
    first = next(
        ((name, m) for name, m in model.named_modules() if not list(m.children()) and list(m.parameters())), None
    )
    candidates = _candidates(first[1]) if first is not None and wants == 1 else []
    for spec in filter(_can_be_drawn, candidates):
        if _runs(model, spec, default, seed):
            assert first is not None
            note = f"the input shape {spec} was read off the first layer '{first[0] or type(first[1]).__name__}'"
            return spec, note
    why = f"forward takes {wants} inputs" if wants != 1 else "it cannot be read off the first layer"
    raise UsageError(f"the shape of the input is not known ({why}); give an input, or its shape.")


def _n_inputs(model: nn.Module) -> int:
    with contextlib.suppress(TypeError, ValueError):
        parameters = inspect.signature(model.forward).parameters.values()
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return sum(p.kind in kinds and p.default is p.empty for p in parameters) or 1
    return 1


def _candidates(layer: nn.Module) -> list[InputSpec]:
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        return [InputSpec((_BATCH, _TIME), torch.int64, 0, layer.num_embeddings)]
    if isinstance(layer, nn.Linear):
        width = layer.in_features
        return [InputSpec((_BATCH, width)), InputSpec((_BATCH, _TIME, width)), *_PICTURES.get(width, ())]
    if isinstance(layer, nn.RNNBase):
        sizes = (_BATCH, _TIME) if layer.batch_first else (_TIME, _BATCH)
        return [InputSpec((*sizes, layer.input_size))]
    if isinstance(layer, nn.MultiheadAttention):
        sizes = (_BATCH, _TIME) if layer.batch_first else (_TIME, _BATCH)
        return [InputSpec((*sizes, layer.embed_dim))]
    if isinstance(layer, nn.RNNCellBase):
        return [InputSpec((_BATCH, _TIME, layer.input_size))]
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        n_axes = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[type(layer)]
        sides = (16, 32, 8) if n_axes == 3 else _SIDES
        return [InputSpec((_BATCH, layer.in_channels, *[side] * n_axes)) for side in sides]
    if isinstance(layer, nn.BatchNorm1d):
        return [InputSpec((_BATCH, layer.num_features))]
    if isinstance(layer, nn.LayerNorm) and isinstance(layer.normalized_shape, tuple):
        return [InputSpec((_BATCH, *layer.normalized_shape)), InputSpec((_BATCH, _TIME, *layer.normalized_shape))]
    return []


def _can_be_drawn(spec: InputSpec) -> bool:
    """Return whether the numbers that a layer gave for its sizes can be sizes: a file may say anything there."""
    sizes = (*spec.shape, spec.high if spec.high is not None else 1)
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return False
    return torch.Size(spec.shape).numel() <= _MAX_ELEMENTS


def _runs(model: nn.Module, spec: InputSpec, default: torch.dtype, seed: int) -> bool:
    generator = torch.Generator().manual_seed(seed)
    subject = Subject(model, (spec.draw(default, generator),), {}, None, lambda output, _: output, seed)
    # With a graph, since forward may take gradients itself.
    with contextlib.suppress(Exception):
        subject.output()
        return True
    return False
