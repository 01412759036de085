"""Make runs in float64 comparable: lift casts to narrow types, and hold detached values constant."""

from __future__ import annotations

import types as python_types
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from deconv_cli.gradients.tensors import tensors_in
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


_NARROW = (torch.float32, torch.float16, torch.bfloat16)

_WIDE: dict[object, object] = dict.fromkeys(_NARROW, torch.float64)

_WIDE |= {torch.complex64: torch.complex128}

_WIDE |= dict.fromkeys(("torch.FloatTensor", "torch.HalfTensor", "torch.BFloat16Tensor"), "torch.DoubleTensor")
"""What a type that is asked for becomes, by itself or by the name that `type` takes."""

_CASTS = ("float", "half", "bfloat16")

_ALREADY_WIDE = {torch.float64, torch.complex128}

_DRAWN_ANEW = ("rand", "randn", "rand_like", "randn_like")


class LiftedCasts(TorchFunctionMode):
    """Lifts the types that functions of torch are asked for, and constants of narrow types that meet wide tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run one function."""
        keywords, name = kwargs or {}, plain_name(func)
        if name in _CASTS and len(args) == 1 and isinstance(args[0], torch.Tensor) and not args[0].is_complex():
            return args[0].to(torch.float64)
        if name == "view":
            return func(*args, **keywords)  # a narrow type says there how bits are to be read
        if name in _DRAWN_ANEW and _is_drawn_narrow(args, keywords):
            return func(*args, **{**keywords, "dtype": torch.float32}).to(torch.float64)
        args, keywords = pytree.tree_map(_lifted, (args, keywords))
        is_writing = name.endswith("_") or "out" in keywords
        types_given = {leaf.dtype for leaf in tensors_in((args, keywords))}
        if not is_writing and types_given & {*_NARROW, torch.complex64} and types_given & _ALREADY_WIDE:
            args, keywords = pytree.tree_map(_to_float64, (args, keywords))
        return (wide_kernel(name, args) or func)(*args, **keywords)


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


def _multiply_groups(
    rows: torch.Tensor,
    matrices: torch.Tensor,
    *,
    offs: torch.Tensor,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Multiply each group of rows, shape (rows, n), by its own matrix, shape (groups, n, m), as experts do.

    Args:
        rows: group after group.
        matrices: one for each group.
        offs: where each group ends; rows after the last one count for nothing.
        bias: added to all products.
        out_dtype: of the result, where it is another one.
    """
    ends = [0, *offs.tolist()]
    groups = zip(pairwise(ends), matrices, strict=True)
    products = [rows[first:end] @ matrix for (first, end), matrix in groups]
    product = torch.cat([*products, rows.new_zeros(len(rows) - ends[-1], matrices.shape[-1])])
    return (product if bias is None else product + bias).to(out_dtype or product.dtype)


def wide_kernel(name: str, arguments: Any) -> Callable[..., torch.Tensor] | None:  # noqa: ANN401  torch's own
    """Return what computes the same in float64 where torch does not, None where it does."""
    if name not in ("grouped_mm", "_grouped_mm"):
        return None
    is_double = all(isinstance(a, torch.Tensor) and a.dtype is torch.float64 for a in arguments[:2])
    is_of_groups = is_double and [a.ndim for a in arguments[:2]] == [2, 3]
    return _multiply_groups if is_of_groups else None
