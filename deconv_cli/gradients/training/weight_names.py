"""The names that code gives to its modules and weights, looked up in the frames that are running."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType

import torch
from torch import nn

from deconv_cli.gradients.tracing.code_location import is_installed, is_user_code


def name_weights(
    called: list[nn.Module], loose: list[torch.Tensor], is_read: Callable[[torch.Tensor], bool]
) -> tuple[dict[str, nn.Module], dict[str, torch.Tensor]]:
    """Name modules, and weights outside of them.

    Args:
        called: modules that code called itself.
        loose: weights of the optimizers.
        is_read: whether a weight was read.

    Returns:
        The outermost modules by name – "" for the only one –, and the weights that were read and no module holds.
    """
    inner = {id(m) for module in called for m in module.modules() if m is not module}
    modules = [m for m in called if id(m) not in inner and _has_weights(m)]
    names, owned = _names_in_callers(), {id(parameter) for module in modules for parameter in module.parameters()}
    is_by_hand = not modules and not any(map(is_read, loose))
    by_hand = _weights_in_callers() if is_by_hand else ()
    found = {id(w): w for w in (*loose, *by_hand) if is_read(w) and id(w) not in owned}
    weights = {names.get(key, f"weight {n}"): weight for n, (key, weight) in enumerate(found.items())}
    if len(modules) == 1 and not weights:
        return {"": modules[0]}, {}
    named: dict[str, nn.Module] = {}
    for module in modules:
        name = names.get(id(module), type(module).__name__)
        named[name if name not in named else f"{name}_{len(named)}"] = module
    return named, weights


def _has_weights(module: nn.Module) -> bool:
    """Return whether a module has parameters of its own; those of a skeleton on the meta device have no values."""
    return any(not parameter.is_meta for parameter in module.parameters())


def own_frames() -> Iterator[FrameType]:
    """List the frames of the user's own code, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if is_user_code(file) and not is_installed(file):
            yield frame
        frame = frame.f_back


def _names_in_callers() -> dict[int, str]:
    """Name what variables hold, and the attributes of `self`, by id."""
    names: dict[int, str] = {}
    for frame in own_frames():
        for name, value in (*frame.f_locals.items(), *frame.f_globals.items()):
            names.setdefault(id(value), name)
            for attribute, held in getattr(value, "__dict__", {}).items() if name == "self" else ():
                names.setdefault(id(held), attribute)
    return names


def _weights_in_callers() -> Iterator[torch.Tensor]:
    """List the weights that are variables of their own, as in training written by hand."""
    for frame in own_frames():
        for value in (*frame.f_locals.values(), *frame.f_globals.values()):
            for held in value if isinstance(value, list | tuple) else (value,):
                if isinstance(held, torch.Tensor) and held.is_leaf and held.requires_grad:
                    yield held
