"""What code detaches on purpose, held constant while parameters move: `.detach()` and everything under `no_grad`.

Autograd takes such a value for a constant, so finite differences have to do the same to be comparable.
"""

from __future__ import annotations

import types as python_types
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from deconv_cli.gradients.tensors_in import tensors_in
from deconv_cli.gradients.tracing.operations import DETACHING_INSIDE, plain_name, reads_values


class HeldConstants(TorchFunctionMode):
    """Records such values in a first run, and gives the same ones back in every later run."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[tuple[str, Any]] = []
        self._position = 0
        self._is_recorded = False

    def __enter__(self) -> HeldConstants:
        """Begin a run."""
        self._position = 0
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: object) -> None:
        """End a run; the first one without an error is the record."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._is_recorded = self._is_recorded or error[0] is None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run one function."""
        keywords = kwargs or {}
        name = plain_name(func)
        if name in DETACHING_INSIDE:
            with _Inner(self):
                return _opened(func)(*args, **keywords)
        result = func(*args, **keywords)
        is_held = name == "detach" or not torch.is_grad_enabled()
        if not is_held or not tensors_in((args, keywords)) or not reads_values(func, name):
            return result
        if not self._is_recorded:
            self._kept.append((name, pytree.tree_map(_copied, result)))
            return result
        return self._held(name, result, {id(tensor) for tensor in tensors_in((args, keywords))})

    def _held(self, name: str, result: Any, inputs: set[int]) -> Any:  # noqa: ANN401  whatever the operation gives
        position, self._position = self._position, self._position + 1
        if position >= len(self._kept) or self._kept[position][0] != name:
            return result  # another branch was taken, which the record knows nothing of
        leaves, spec = pytree.tree_flatten(result)
        kept = pytree.tree_leaves(self._kept[position][1])
        if len(leaves) != len(kept):
            return result
        return pytree.tree_unflatten([_in_place_of(*pair, inputs) for pair in zip(leaves, kept, strict=True)], spec)


class _Inner(TorchFunctionMode):
    """Goes on with a run inside a function of torch, where torch has taken the mode of the run off."""

    def __init__(self, outer: HeldConstants) -> None:
        super().__init__()
        self._outer = outer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Pass one function on."""
        return self._outer.__torch_function__(func, types, args, kwargs)


def _opened(function: Any) -> Any:  # noqa: ANN401  a function of torch that detaches inside
    """Return a function of torch that lets a mode see what it calls, which is hidden otherwise."""
    own = {**function.__globals__, "has_torch_function_unary": lambda _: False}
    opened = python_types.FunctionType(function.__code__, own, function.__name__, function.__defaults__)
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


def _copied(leaf: Any) -> Any:  # noqa: ANN401  tensors or anything else
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf


def _in_place_of(found: Any, kept: Any, inputs: set[int]) -> Any:  # noqa: ANN401  tensors or anything else
    """Give a recorded value instead of the one that was found, in the same tensor where it was written in place."""
    if not isinstance(found, torch.Tensor) or not isinstance(kept, torch.Tensor) or found.shape != kept.shape:
        return found
    if id(found) in inputs:
        return found.copy_(kept)
    return kept.clone()
