"""Modes of torch that make runs comparable with autograd, and calls that no mode sees."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import _SingleLevelFunction
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointFunction

from deconv_cli.gradients.nested_tensors import HALF, NARROW, tensors_in
from deconv_cli.gradients.tracing.operations import DETACHING_INSIDE, plain_name, reads_values


@contextlib.contextmanager
def replaced(owner: Any, name: str, replacement: Any) -> Iterator[None]:  # noqa: ANN401  classes and modules
    """Replace an attribute for a while, also one that the owner inherits."""
    is_own, original = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original) if is_own else delattr(owner, name)


@dataclass(frozen=True)
class HiddenCall:
    """A call that no mode of torch sees: `apply` of a Function (`cls`), `nn.Parameter` or `Variable`, by `name`."""

    cls: Any
    name: str
    function: Callable[..., Any]
    args: Any
    keywords: dict[str, Any]

    @property
    def is_function(self) -> bool:
        """Whether this is the `apply` of a Function."""
        return self.name.endswith(".apply")

    def run(self) -> Any:  # noqa: ANN401  whatever the call gives
        """Make the call."""
        return self.function(*self.args, **self.keywords)


@contextlib.contextmanager
def observing_hidden_calls(observe: Callable[[HiddenCall], Any]) -> Iterator[None]:
    """Hand hidden calls to `observe`, which makes them; also those of an `apply` that was bound before."""

    def apply(cls: Any, *args: Any, **keywords: Any) -> Any:  # noqa: ANN401  torch's own signature
        call = super(_SingleLevelFunction, cls).apply
        return observe(HiddenCall(cls, f"{cls.__name__}.apply", call, args, keywords))

    def observed(owner: type, attribute: str, name: str) -> contextlib.AbstractContextManager[None]:
        make = getattr(owner, attribute)

        def watched(cls: Any, *args: Any, **keywords: Any) -> Any:  # noqa: ANN401  torch's own signature
            return observe(HiddenCall(cls, name, functools.partial(make, cls), args, keywords))

        return replaced(owner, attribute, watched)

    with (
        replaced(_SingleLevelFunction, "apply", classmethod(apply)),
        observed(nn.Parameter, "__new__", "nn.Parameter"),
        observed(type(torch.autograd.Variable), "__call__", "Variable"),
    ):
        yield


class EachCall(TorchFunctionMode):
    """Hands every call of a function of torch to `handle`, which makes the call."""

    def __init__(self, handle: Callable[[Any, Any, dict[str, Any]], Any]) -> None:
        super().__init__()
        self._handle = handle

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        return self._handle(func, args, kwargs or {})


def noting_changes(hook: Callable[..., Any], note: Callable[[], object], position: int) -> Callable[..., Any]:
    """Return a hook that does the same, and calls `note` if it changes the gradients, its argument at `position`."""

    @functools.wraps(hook)
    def noting(*given: Any) -> Any:  # noqa: ANN401  any return value of the user's hook
        before = [gradient.detach().clone() for gradient in tensors_in(given[position])]
        result = hook(*given)
        if not all(map(torch.equal, tensors_in(given[position] if result is None else result), before)):
            note()
        return result

    return noting


class DetachedConstants:
    """Holds constant what code detaches on purpose: results of `.detach()` and of everything under `no_grad`.

    The first run records these values, and every later run returns them. Autograd treats them as constants, so finite
    differences must do so too. A hand-written Function runs without gradients, but its backward passes gradients on, so
    no value inside it is held constant.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[str, list[Any]]] = []
        self._position = 0
        self._is_recorded = False
        self._n_functions = 0  # that run

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Record the values of a run, or hold them if one was recorded."""
        self._position = 0
        with observing_hidden_calls(self._run_hidden), EachCall(self._call):
            yield
        self._is_recorded = True

    def _run_hidden(self, hidden: HiddenCall) -> Any:  # noqa: ANN401  whatever the call gives
        """Run a hand-written Function, or the content of a reentrant checkpoint, which backward runs with gradients."""
        if not hidden.is_function or not torch.is_grad_enabled():
            return hidden.run()
        if hidden.cls is CheckpointFunction:
            function, _preserve, *inputs = hidden.args
            return function(*inputs)
        self._n_functions += 1
        try:
            return hidden.run()
        finally:
            self._n_functions -= 1

    def _call(self, func: Any, args: Any, keywords: dict[str, Any]) -> Any:  # noqa: ANN401  any function of torch
        name = plain_name(func)
        if self._n_functions:
            return func(*args, **keywords)
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


_WIDE: dict[object, object] = dict.fromkeys(NARROW, torch.float64)
_WIDE |= {torch.complex64: torch.complex128}
_WIDE |= dict.fromkeys(("torch.FloatTensor", "torch.HalfTensor", "torch.BFloat16Tensor"), "torch.DoubleTensor")
"""Wide types for narrow ones, also by the names that `type` takes."""

_CASTS = ("float", "half", "bfloat16")
_ALREADY_WIDE = {torch.float64, torch.complex128}
_DRAWING = ("rand", "randn", "rand_like", "randn_like")


def lift_casts(func: Any, args: Any, keywords: dict[str, Any]) -> Any:  # noqa: ANN401  any function of torch
    """Turn casts to narrow types inside a model into casts to float64, and lift narrow constants.

    Random numbers are drawn in single precision, so that a layer that is skipped at random is skipped here too.
    """
    name = plain_name(func)
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


class LiftedHalves(TorchDispatchMode):
    """Keeps float64 where a hand-written Function takes or makes half precision, so that its formula is judged.

    It does nothing for a model that does not run in float64.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        keywords = kwargs or {}
        if torch.get_default_dtype() != torch.float64:
            return func(*args, **keywords)
        if keywords.get("dtype") in HALF:
            keywords = {**keywords, "dtype": torch.float64}
        if not func._schema.is_mutable:
            args, keywords = pytree.tree_map(_half_to_float64, (args, keywords))
        return func(*args, **keywords)


def _half_to_float64(value: Any) -> Any:  # noqa: ANN401  anything that a function of torch takes
    return value.double() if isinstance(value, torch.Tensor) and value.dtype in HALF else value


def _is_drawn_narrow(args: Any, keywords: dict[str, Any]) -> bool:  # noqa: ANN401  torch's own signature
    """Return whether a function draws in single precision for a model in single precision."""
    if keywords.get("dtype") is not None:
        return keywords["dtype"] in NARROW
    return not (args and isinstance(args[0], torch.Tensor)) or bool(args[0].is_floating_point())


def _to_float64(value: Any) -> Any:  # noqa: ANN401  anything that a function of torch takes
    if not isinstance(value, torch.Tensor) or value.dtype not in _WIDE:
        return value
    return value.to(torch.complex128 if value.is_complex() else torch.float64)
