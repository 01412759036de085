"""Building a model from the class that the user named, and loading a state dict into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from deconv_cli.errors import DeconvError, MalformedInputError, UsageError
from deconv_cli.io.files import reason_of
from deconv_cli.models.model_files import ModelFile, StateDict
from deconv_cli.models.named_code import NamedCode


def build_model(named: NamedCode, init: Any, stored: ModelFile | None) -> nn.Module:  # noqa: ANN401 (JSON)
    """Call the class or function that the user named, or take the instance, and load the weights of a file.

    Keyword arguments are a mapping, positional ones a list. Without a file the weights keep their initial values.

    Raises:
        UsageError: the call fails, or returns no module.
        InputRefusedError: the weights do not fit the module.
    """
    model = named.value if isinstance(named.value, nn.Module) else _call(named, init)
    if model is named.value and init is not None:
        raise UsageError(f"'{named.text}' is a model already, which takes no arguments; leave out init=ARGUMENTS.")
    if not isinstance(model, nn.Module):
        raise UsageError(f"'{named.text}' should give a torch.nn.Module, but gave a {type(model).__name__}.")
    if stored is not None and stored.state is not None:
        _load_into(model, stored.path, stored.state)
    return model


def _call(named: NamedCode, init: Any) -> object:  # noqa: ANN401 (JSON)
    arguments, keywords = (init, {}) if isinstance(init, list) else ([], init or {})
    try:
        return named.value(*arguments, **keywords)
    except DeconvError:
        raise
    except Exception as error:
        raise UsageError(
            f"'{named.text}' could not be built ({type(error).__name__}: {reason_of(error)}); give the arguments of "
            "its class with init=ARGUMENTS."
        ) from error


def _load_into(model: nn.Module, path: Path, state: StateDict) -> None:
    """Load a state dict; a prefix `module.` of all names is dropped, tied tensors may be stored once."""
    wanted = model.state_dict(keep_vars=True)
    if state.keys() != wanted.keys() and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    # A tensor that the model holds under several names is copied to all of them: some writers store it once.
    stored = {_identity(wanted[name]): tensor for name, tensor in state.items() if name in wanted}
    tied = [name for name in wanted if name not in state and _identity(wanted[name]) in stored]
    state = state | {name: stored[_identity(wanted[name])] for name in tied}
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or extra:
        lacks = f"lacks {_listed(missing)}" if missing else ""
        holds = f"holds {_listed(extra)}, which the model has not" if extra else ""
        raise MalformedInputError(
            f"'{path}' does not fit the model: it {' and '.join(filter(None, (lacks, holds)))}; check the class and "
            "its arguments."
        )
    for name, tensor in state.items():
        # A lazy parameter takes its shape from the loaded tensor.
        if not nn.parameter.is_lazy(wanted[name]) and tensor.shape != wanted[name].shape:
            raise MalformedInputError(
                f"'{path}' does not fit the model: '{name}' is of shape {tuple(tensor.shape)}, but the model has "
                f"{tuple(wanted[name].shape)}; check the arguments of its class."
            )
    model.load_state_dict(state)


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Identify a tensor by its memory; one that has none is only itself."""
    if not isinstance(tensor, torch.Tensor) or nn.parameter.is_lazy(tensor) or not tensor.numel() or tensor.is_meta:
        return (id(tensor),)
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(f"'{name}'" for name in names[:4]) + more
