"""State dicts: found in a file, and loaded into a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deconv_cli.errors import MalformedInputError
from deconv_cli.io.codecs.safetensors_file import SAFETENSORS
from deconv_cli.io.tensors import open_tensors
from deconv_cli.io.weights_only import check_dense

_CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")

StateDict = dict[str, torch.Tensor]


def read_safetensors(path: Path) -> StateDict:
    """Read all tensors of a .safetensors file; a damaged or empty one is a `MalformedInputError`."""
    opened = open_tensors(path, SAFETENSORS)
    return {name: torch.as_tensor(opened.read(name)) for name in opened.shapes}


def find_state_dict(path: Path, found: object) -> tuple[StateDict, tuple[str, ...]]:
    """Find the state dict in what `torch.save` wrote: bare, or inside a checkpoint.

    Returns:
        The tensors by name, and notes on where they were found.

    Raises:
        MalformedInputError: there is none, or one of its tensors is not dense.
        TooLargeError: a tensor that repeats a few samples.
    """
    entries: Mapping[Any, Any] = found if isinstance(found, Mapping) else {}
    for key, candidate in ((None, entries), *((key, entries.get(key)) for key in _CHECKPOINT_KEYS)):
        if isinstance(candidate, Mapping) and candidate and all(map(torch.is_tensor, candidate.values())):
            state = {str(name): tensor for name, tensor in candidate.items()}
            for name, tensor in state.items():
                check_dense(path, tensor, name)
            return state, () if key is None else (f"the weights were taken from the entry '{key}' of a checkpoint",)
    listed = f" with the entries {', '.join(repr(str(key)) for key in list(entries)[:6])}" if entries else ""
    raise MalformedInputError(
        f"'{path}' should hold a model or a state dict, but holds a {type(found).__name__}{listed}; save "
        "model.state_dict() alone."
    )


def load_into(model: nn.Module, path: Path, state: StateDict) -> None:
    """Load a state dict into a model; a prefix `module.` of all names is dropped, tied tensors may be stored once.

    Raises:
        MalformedInputError: names or shapes that differ.
    """
    wanted = model.state_dict(keep_vars=True)
    if state.keys() != wanted.keys() and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    state = _with_tied(state, wanted)
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or extra:
        lacks = f"lacks {_listed(missing)}" if missing else ""
        holds = f"holds {_listed(extra)}, which the model has not" if extra else ""
        raise MalformedInputError(
            f"'{path}' does not fit the model: it {' and '.join(filter(None, (lacks, holds)))}; check the class and "
            "its arguments."
        )
    for name, tensor in state.items():
        # A lazy parameter takes its shape from what is loaded.
        if not nn.parameter.is_lazy(wanted[name]) and tensor.shape != wanted[name].shape:
            raise MalformedInputError(
                f"'{path}' does not fit the model: '{name}' is of shape {tuple(tensor.shape)}, but the model has "
                f"{tuple(wanted[name].shape)}; check the arguments of its class."
            )
    model.load_state_dict(state)


def _with_tied(state: StateDict, wanted: Mapping[str, torch.Tensor]) -> StateDict:
    """Give tensors that the model holds under several names under all of them: some writers store them once."""
    stored = {_identity(wanted[name]): tensor for name, tensor in state.items() if name in wanted}
    missing = [name for name in wanted if name not in state and _identity(wanted[name]) in stored]
    return state | {name: stored[_identity(wanted[name])] for name in missing}


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Identify a tensor by its memory; one that has none is only itself."""
    if not isinstance(tensor, torch.Tensor) or nn.parameter.is_lazy(tensor) or not tensor.numel() or tensor.is_meta:
        return (id(tensor),)
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(f"'{name}'" for name in names[:4]) + more
