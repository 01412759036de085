"""Whole modules from pickles: which classes need no permission, and what is checked before a module is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from deconv_cli.errors import MalformedInputError
from deconv_cli.io.sources import refusing_damage
from deconv_cli.io.weights_only import check_dense

_ACTIVATIONS = ("relu", "gelu", "elu", "selu", "silu", "softplus", "tanh", "sigmoid", "leaky_relu", "mish")
_MAX_MODULES = 100_000


def torch_globals() -> list[tuple[Any, str]]:
    """List what a pickle of a module made of torch.nn names: the module classes and the activation functions."""
    classes: list[Any] = [kind for kind in vars(nn.modules).values() if isinstance(kind, type)]
    classes = [kind for kind in classes if issubclass(kind, nn.Module)]
    classes.append(nn.modules.linear.NonDynamicallyQuantizableLinear)
    found = [*classes, *(getattr(functional, name) for name in _ACTIVATIONS)]
    return [(each, f"{each.__module__}.{each.__name__}") for each in found]


def check_module(path: Path, module: nn.Module) -> None:
    """Check that a module that came from a pickle can be walked, and that its tensors can be worked on.

    A pickle may fill the dictionary of a module with anything, and torch's methods trust it: a module that holds
    itself, or another one twice at each of many levels, would never let them finish.

    Raises:
        MalformedInputError: a member of the wrong type, a module without end, or a tensor that is not dense.
        TooLargeError: a tensor that repeats a few samples.
    """
    waiting, n_modules = [module], 0
    with refusing_damage(path, "a model as torch saves it"):
        while waiting:
            found = waiting.pop()
            members = vars(found)
            replaced = [name for name in members if callable(getattr(nn.Module, str(name), None))]
            if replaced:
                raise _malformed(path, f"its method '{str(replaced[0])[:40]}' is replaced")
            children = [child for child in members["_modules"].values() if child is not None]
            n_modules += 1 + len(children)
            if n_modules > _MAX_MODULES:
                raise _malformed(path, f"a module holds itself, or more than {_MAX_MODULES} others")
            _check_types(path, members["_parameters"], nn.Parameter)
            _check_types(path, members["_buffers"], torch.Tensor)
            _check_types(path, members["_modules"], nn.Module)
            waiting += children
        for name, tensor in module.state_dict(keep_vars=True).items():
            if isinstance(tensor, torch.Tensor):
                check_dense(path, tensor, name)


def _check_types(path: Path, members: dict[str, object], kind: type) -> None:
    for name, value in members.items():
        if value is not None and not isinstance(value, kind):
            raise _malformed(path, f"'{str(name)[:40]}' should be a {kind.__name__}, but is a {type(value).__name__}")


def _malformed(path: Path, complaint: str) -> MalformedInputError:
    return MalformedInputError(
        f"'{path}' is not a model as torch saves it: {complaint}; save it again, or its state_dict() alone."
    )
