"""Tensors in nested containers, and two modes that make runs in float64 comparable with autograd."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from deconv_cli.gradients.tracing.operations import DETACHING_INSIDE, plain_name, reads_values


def tensors_in(found: Any) -> list[torch.Tensor]:  # noqa: ANN401  anything that holds tensors
    """List the tensors in nested lists, tuples, dictionaries and dataclasses."""
    tensors: list[torch.Tensor] = []
    for leaf in pytree.tree_leaves(found):
        if isinstance(leaf, torch.Tensor):
            tensors.append(leaf)
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            tensors += tensors_in([getattr(leaf, field.name) for field in dataclasses.fields(leaf)])
    return tensors


def real(found: Any) -> list[torch.Tensor]:  # noqa: ANN401  anything that holds tensors
    """List the floating-point tensors in nested containers."""
    return [tensor for tensor in tensors_in(found) if tensor.is_floating_point()]


def to_float64(tensor: torch.Tensor) -> torch.Tensor:
    """Convert a tensor to a dense one in double precision, real or complex."""
    dense = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    return dense.to(torch.complex128 if dense.is_complex() else torch.float64)


def norm_of(tensor: torch.Tensor) -> float:
    """Compute the Euclidean norm, of complex numbers by their magnitudes."""
    return float(to_float64(tensor).norm())


def storage_key(tensor: torch.Tensor) -> int:
    """Return a key of the memory of a tensor, which its views share."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError, ValueError):
        return -id(tensor)


def is_plain(value: Any) -> bool:  # noqa: ANN401
    """Return whether something is a plain container, whose content a module of torch does not register."""
    return isinstance(value, list | tuple | dict)


def leaves_of(value: Any) -> Iterator[Any]:  # noqa: ANN401
    """List the leaves of nested containers; a container that holds itself is entered once."""
    waiting, seen = [value], set[int]()
    while waiting:
        found = waiting.pop()
        if not isinstance(found, list | tuple | dict):
            yield found
        elif id(found) not in seen:
            seen.add(id(found))
            waiting += reversed(list(found.values() if isinstance(found, dict) else found))


class DetachedConstants(TorchFunctionMode):
    """Holds constant what code detaches on purpose: results of `.detach()` and of everything under `no_grad`.

    The first run records these values, and every later run returns them. Autograd treats them as constants, so finite
    differences must do so too.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[tuple[str, list[Any]]] = []
        self._position = 0
        self._is_recorded = False

    def __enter__(self) -> DetachedConstants:
        self._position = 0
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._is_recorded = self._is_recorded or error[0] is None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        keywords = kwargs or {}
        name = plain_name(func)
        if name in DETACHING_INSIDE:
            return self._gumbel_softmax(func, inspect.signature(func).bind(*args, **keywords))
        result = func(*args, **keywords)
        is_held = name == "detach" or not torch.is_grad_enabled()
        inputs = {id(tensor) for tensor in tensors_in((args, keywords))}
        return self._constant(name, result, inputs) if is_held and inputs and reads_values(func, name) else result

    def _constant(self, name: str, result: Any, inputs: set[int]) -> Any:  # noqa: ANN401  whatever the operation gives
        """Record the result in the first run, and return the recorded one later."""
        leaves, spec = pytree.tree_flatten(result)
        if not self._is_recorded:
            copied = [leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
            self._kept.append((name, copied))
            return result
        position, self._position = self._position, self._position + 1
        recorded_name, recorded = self._kept[position] if position < len(self._kept) else ("", [])
        if recorded_name != name or len(recorded) != len(leaves):
            return result  # the run took another branch, which is not recorded
        for n, (leaf, kept) in enumerate(zip(leaves, recorded, strict=True)):
            if isinstance(leaf, torch.Tensor) and isinstance(kept, torch.Tensor) and leaf.shape == kept.shape:
                # An operation that wrote in place must return the same tensor.
                leaves[n] = leaf.copy_(kept) if id(leaf) in inputs else kept.clone()
        return pytree.tree_unflatten(leaves, spec)

    def _gumbel_softmax(self, function: Any, given: inspect.BoundArguments) -> torch.Tensor:  # noqa: ANN401
        """Compute torch's gumbel_softmax, which detaches inside where no mode can see it."""
        is_hard = given.arguments.get("hard", False)
        given.arguments["hard"] = False
        soft: torch.Tensor = function(*given.args, **given.kwargs)
        if not is_hard:
            return soft
        axis = given.arguments.get("dim", -1)
        chosen = torch.zeros_like(soft).scatter_(axis, soft.argmax(axis, keepdim=True), 1.0)
        constant: torch.Tensor = self._constant("detach", soft.detach(), set())
        return chosen - constant + soft


NARROW = (torch.float32, torch.float16, torch.bfloat16)
_WIDE: dict[object, object] = dict.fromkeys(NARROW, torch.float64)
_WIDE |= {torch.complex64: torch.complex128}
_WIDE |= dict.fromkeys(("torch.FloatTensor", "torch.HalfTensor", "torch.BFloat16Tensor"), "torch.DoubleTensor")
"""Wide types for narrow ones, also by the names that `type` takes."""

_CASTS = ("float", "half", "bfloat16")
_ALREADY_WIDE = {torch.float64, torch.complex128}
_DRAWING = ("rand", "randn", "rand_like", "randn_like")


class LiftedCasts(TorchFunctionMode):
    """Turns casts to narrow types inside a model into casts to float64, and lifts narrow constants.

    Random numbers are drawn in single precision, so that a layer that is skipped at random is skipped here too.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        keywords, name = kwargs or {}, plain_name(func)
        if name in _CASTS and len(args) == 1 and isinstance(args[0], torch.Tensor) and not args[0].is_complex():
            return args[0].to(torch.float64)
        if name == "view":
            return func(*args, **keywords)  # there a narrow type says how to read the bits
        if name in _DRAWING and _is_drawn_narrow(args, keywords):
            return func(*args, **{**keywords, "dtype": torch.float32}).to(torch.float64)
        args, keywords = pytree.tree_map(
            lambda leaf: _WIDE.get(leaf, leaf) if isinstance(leaf, torch.dtype | str) else leaf, (args, keywords)
        )
        is_writing = name.endswith("_") or "out" in keywords
        types_given = {leaf.dtype for leaf in tensors_in((args, keywords))}
        if not is_writing and types_given & {*NARROW, torch.complex64} and types_given & _ALREADY_WIDE:
            args, keywords = pytree.tree_map(_to_float64, (args, keywords))
        return func(*args, **keywords)


def _is_drawn_narrow(args: Any, keywords: dict[str, Any]) -> bool:  # noqa: ANN401  torch's own signature
    """Return whether a function draws in single precision for a model in single precision."""
    if keywords.get("dtype") is not None:
        return keywords["dtype"] in NARROW
    return not (args and isinstance(args[0], torch.Tensor)) or bool(args[0].is_floating_point())


def _to_float64(value: Any) -> Any:  # noqa: ANN401  anything that a function of torch takes
    if not isinstance(value, torch.Tensor) or value.dtype not in _WIDE:
        return value
    return value.to(torch.complex128 if value.is_complex() else torch.float64)
