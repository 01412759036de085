"""One watched forward pass: the flow tracker sees every function of torch that runs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import _SingleLevelFunction
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import CheckpointFunction

from deconv_cli.gradients.nested_tensors import tensors_in
from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.tracing.flow_tracker import FlowTracker
from deconv_cli.gradients.tracing.forward_trace import ForwardTrace, FunctionCall, Operation
from deconv_cli.gradients.tracing.operations import RANDOM, WATCHED, LossCall, find_misuse, label_of, plain_name


def trace_forward(subject: Subject, *, find_origins: bool = False, keep_tensors: bool = False) -> ForwardTrace:
    """Run forward and the loss once, and watch.

    `find_origins` also looks for operations that make NaN or infinity, `keep_tensors` keeps all computed tensors.
    """
    tracker = FlowTracker(subject, find_origins=find_origins, keep_tensors=keep_tensors)
    with (
        tracker.locator.following(),
        replaced(_SingleLevelFunction, "apply", _traced_apply(tracker)),
        replaced(nn.Parameter, "__new__", _traced_parameter(tracker)),
        replaced(type(torch.autograd.Variable), "__call__", _traced_variable(tracker)),
        _FunctionMode(tracker),
    ):
        loss = subject.run()[1]
    return tracker.result(loss)


class _FunctionMode(TorchFunctionMode):
    """Sees every function of torch that Python calls."""

    def __init__(self, tracker: FlowTracker) -> None:
        super().__init__()
        self._tracker = tracker

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run one function."""
        keywords, tracker = kwargs or {}, self._tracker
        name = plain_name(func)
        if name in RANDOM and not tracker.suspended:
            tracker.trace.random.append(Operation(label_of(name), tracker.locator.here()))
        if name == "_set_grad_enabled":
            tracker.follow_gradient_mode(is_enabled=bool(args[0]))
        if name == "register_hook" and not tracker.suspended and callable(args[-1]):
            args = args[0], _watched_hook(args[-1], tracker.locator.here(), tracker.trace.hooks)
        inputs = tensors_in((args, keywords))
        if not inputs:
            return func(*args, **keywords)
        if not tracker.suspended:
            _look_at_arguments(tracker, func, name, args, keywords)
        is_derivative = func is torch.autograd.grad and bool(keywords.get("create_graph"))
        call = functools.partial(func, *args, **keywords)
        return tracker.observe(func, name, inputs, call, is_derivative=is_derivative)


def _watched_hook(
    hook: Callable[..., Any], location: CodeLocation, changing: list[CodeLocation]
) -> Callable[[torch.Tensor], Any]:
    """Return a hook that does the same, and lists its line once it changes a gradient."""

    @functools.wraps(hook)
    def watching(gradient: torch.Tensor) -> Any:  # noqa: ANN401  any return value of the user's hook
        before = gradient.detach().clone()
        result = hook(gradient)
        after = gradient if result is None else result
        if not (isinstance(after, torch.Tensor) and torch.equal(after, before)):
            changing.append(location)
        return result

    return watching


def _look_at_arguments(
    tracker: FlowTracker,
    function: Any,  # noqa: ANN401  torch's functions have no one type
    name: str,
    arguments: Any,  # noqa: ANN401
    keywords: dict[str, Any],
) -> None:
    """Note misused losses, tensors to differentiate by, and parameters whose `.data` is replaced."""
    if function is torch.autograd.grad:
        by = keywords["inputs"] if "inputs" in keywords else arguments[1]
        tracker.trace.differentiated_by += [tensor for tensor in tensors_in(by) if tensor.is_leaf]
    if name in WATCHED:
        misuse = find_misuse(name, arguments, keywords)
        if misuse is not None:
            given = [tuple(argument.shape) for argument in arguments[:2] if isinstance(argument, torch.Tensor)]
            shapes = given[0], given[-1]
            tracker.trace.loss_calls.append(LossCall(name, tracker.locator.here(), misuse, shapes))
    if name == "data" and getattr(function, "__name__", "") == "__set__":
        tracker.count_write(arguments[0], tracker.locator.here())


@contextlib.contextmanager
def replaced(owner: Any, name: str, replacement: Any) -> Iterator[None]:  # noqa: ANN401  classes and modules
    """Replace an attribute for a while, also one that the owner inherits."""
    is_own, original = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original) if is_own else delattr(owner, name)


def _traced_apply(tracker: FlowTracker) -> Any:  # noqa: ANN401  a class method
    """See calls of hand-written Functions, also through an `apply` that was bound before."""

    def traced(cls: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  torch's own signature
        def call() -> Any:  # noqa: ANN401  whatever the Function gives
            tracker.suspended += 1
            try:
                result = super(_SingleLevelFunction, cls).apply(*args, **kwargs)
            finally:
                tracker.suspended -= 1
            if cls is CheckpointFunction:
                tracker.count_checkpoint(result)
            return result

        return call() if tracker.suspended else _observe_function(tracker, cls, args, call)

    return classmethod(traced)


def _traced_parameter(tracker: FlowTracker) -> Callable[..., Any]:
    """See tensors that are wrapped as a new parameter, which no mode of torch sees."""
    original = nn.Parameter.__new__

    def traced(cls: Any, data: Any = None, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  torch's own
        made = original(cls, data, *args, **kwargs)
        if isinstance(data, torch.Tensor) and not tracker.suspended:
            tracker.follow_wrapping(data, made)
        return made

    return traced


def _traced_variable(tracker: FlowTracker) -> Callable[..., Any]:
    """See calls of the constructor of `Variable`, which no mode of torch sees."""
    original = type(torch.autograd.Variable).__call__

    def traced(cls: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  torch's own signature
        call = functools.partial(original, cls, *args, **kwargs)
        inputs = tensors_in(args)
        return tracker.observe(cls, "Variable", inputs, call) if inputs and not tracker.suspended else call()

    return traced


def _observe_function(tracker: FlowTracker, cls: Any, args: Any, call: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Run a hand-written Function, and keep its arguments."""
    inputs = tensors_in(args)
    kept = pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, args)
    needs = tuple(tensor.requires_grad for tensor in inputs)
    result = tracker.observe(cls, f"{cls.__name__}.apply", inputs, call)
    node = next((tensor.grad_fn for tensor in tensors_in(result) if tensor.grad_fn is not None), None)
    if any(needs) and not cls.__module__.startswith("torch."):
        tracker.trace.calls.append(FunctionCall(cls, kept, needs, node, tracker.locator.here()))
    return result
