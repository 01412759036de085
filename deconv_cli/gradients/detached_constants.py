"""Make runs in float64 comparable: lift casts to narrow types, and hold detached values constant."""

from __future__ import annotations

import types as python_types
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from deconv_cli.gradients.tensors import tensors_in
from deconv_cli.gradients.tracing.operations import DETACHING_INSIDE, plain_name, reads_values


class DetachedConstants(TorchFunctionMode):
    """Holds constant what code detaches on purpose: results of `.detach()` and of everything under `no_grad`.

    The first run records these values, and every later run returns them. Autograd treats them as constants, so finite
    differences must do so too.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[tuple[str, Any]] = []
        self._position = 0
        self._is_recorded = False

    def __enter__(self) -> DetachedConstants:
        """Begin a run."""
        self._position = 0
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: object) -> None:
        """End a run; the first one without an error becomes the record."""
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
            return result  # the run took another branch, which is not recorded
        leaves, spec = pytree.tree_flatten(result)
        kept = pytree.tree_leaves(self._kept[position][1])
        if len(leaves) != len(kept):
            return result
        return pytree.tree_unflatten([_in_place_of(*pair, inputs) for pair in zip(leaves, kept, strict=True)], spec)


class _Inner(TorchFunctionMode):
    """Passes functions on to the mode of a run, inside a function of torch that has switched that mode off."""

    def __init__(self, outer: DetachedConstants) -> None:
        super().__init__()
        self._outer = outer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Pass one function on."""
        return self._outer.__torch_function__(func, types, args, kwargs)


def _opened(function: Any) -> Any:  # noqa: ANN401  a function of torch that detaches inside
    """Return a function of torch whose inner calls a mode can see."""
    own = {**function.__globals__, "has_torch_function_unary": lambda _: False}
    opened = python_types.FunctionType(function.__code__, own, function.__name__, function.__defaults__)
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


def _copied(leaf: Any) -> Any:  # noqa: ANN401  tensors or anything else
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf


def _in_place_of(found: Any, kept: Any, inputs: set[int]) -> Any:  # noqa: ANN401  tensors or anything else
    """Return the recorded value, in the same tensor where the operation wrote in place."""
    if not isinstance(found, torch.Tensor) or not isinstance(kept, torch.Tensor) or found.shape != kept.shape:
        return found
    if id(found) in inputs:
        return found.copy_(kept)
    return kept.clone()


_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_WIDE: dict[object, object] = dict.fromkeys(_NARROW, torch.float64)
_WIDE |= {torch.complex64: torch.complex128}
_WIDE |= dict.fromkeys(("torch.FloatTensor", "torch.HalfTensor", "torch.BFloat16Tensor"), "torch.DoubleTensor")
"""Wide types for narrow ones, also by the names that `type` takes."""

_CASTS = ("float", "half", "bfloat16")
_ALREADY_WIDE = {torch.float64, torch.complex128}
_DRAWN_ANEW = ("rand", "randn", "rand_like", "randn_like")


class LiftedCasts(TorchFunctionMode):
    """Turns casts to narrow types inside a model into casts to float64, and lifts narrow constants.

    Random numbers are drawn in single precision, so that a layer that is skipped at random is skipped here too.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run one function."""
        keywords, name = kwargs or {}, plain_name(func)
        if name in _CASTS and len(args) == 1 and isinstance(args[0], torch.Tensor) and not args[0].is_complex():
            return args[0].to(torch.float64)
        if name == "view":
            return func(*args, **keywords)  # there a narrow type says how to read the bits
        if name in _DRAWN_ANEW and _is_drawn_narrow(args, keywords):
            return func(*args, **{**keywords, "dtype": torch.float32}).to(torch.float64)
        args, keywords = pytree.tree_map(_lifted, (args, keywords))
        is_writing = name.endswith("_") or "out" in keywords
        types_given = {leaf.dtype for leaf in tensors_in((args, keywords))}
        if not is_writing and types_given & {*_NARROW, torch.complex64} and types_given & _ALREADY_WIDE:
            args, keywords = pytree.tree_map(_to_float64, (args, keywords))
        return func(*args, **keywords)


def _is_drawn_narrow(args: Any, keywords: dict[str, Any]) -> bool:  # noqa: ANN401  torch's own signature
    """Return whether a function would draw in single precision, were the model not in double."""
    if keywords.get("dtype") is not None:
        return keywords["dtype"] in _NARROW
    return not (args and isinstance(args[0], torch.Tensor)) or bool(args[0].is_floating_point())


def _lifted(value: Any) -> Any:  # noqa: ANN401  anything that a function of torch takes
    return _WIDE.get(value, value) if isinstance(value, torch.dtype | str) else value


def _to_float64(value: Any) -> Any:  # noqa: ANN401  anything that a function of torch takes
    if not isinstance(value, torch.Tensor) or value.dtype not in _WIDE:
        return value
    return value.to(torch.complex128 if value.is_complex() else torch.float64)
