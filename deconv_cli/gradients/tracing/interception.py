"""One watched forward pass: the flow tracker sees every function of torch that runs."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import CheckpointFunction

from deconv_cli.gradients.nested_tensors import tensors_in
from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.torch_modes import EachCall, HiddenCall, noting_changes, observing_hidden_calls
from deconv_cli.gradients.tracing.code_location import Operation
from deconv_cli.gradients.tracing.flow_tracker import FlowTracker
from deconv_cli.gradients.tracing.forward_trace import ForwardTrace, FunctionCall
from deconv_cli.gradients.tracing.operations import RANDOM, WATCHED, LossCall, find_misuse, label_of, plain_name


def trace_forward(subject: Subject, *, keep_tensors: bool = False) -> ForwardTrace:
    """Run forward and the loss once, and watch; `keep_tensors` keeps the tensors of every operation."""
    tracker = FlowTracker(subject, keep_tensors=keep_tensors)
    with (
        observing_hidden_calls(functools.partial(_observe_hidden_call, tracker)),
        EachCall(functools.partial(_observe_call, tracker)),
    ):
        loss = subject.run()[1]
    return tracker.result(loss)


def _observe_call(tracker: FlowTracker, func: Any, args: Any, keywords: dict[str, Any]) -> Any:  # noqa: ANN401
    """Make any call of a function of torch, and follow it if it takes tensors."""
    name = plain_name(func)
    if name in RANDOM and not tracker.suspended:
        tracker.trace.random.append(Operation(label_of(name), tracker.locator.here()))
    if name == "_set_grad_enabled":
        tracker.follow_gradient_mode(is_enabled=bool(args[0]))
    if name == "register_hook" and not tracker.suspended and callable(args[-1]):
        note = functools.partial(tracker.trace.hooks.append, tracker.locator.here())
        args = args[0], noting_changes(args[-1], note, position=0)
    inputs = tensors_in((args, keywords))
    if not inputs:
        return func(*args, **keywords)
    if not tracker.suspended:
        _look_at_arguments(tracker, func, name, args, keywords)
    is_derivative = func is torch.autograd.grad and bool(keywords.get("create_graph"))
    call = functools.partial(func, *args, **keywords)
    return tracker.observe(func, name, inputs, call, is_derivative=is_derivative)


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


def _observe_hidden_call(tracker: FlowTracker, hidden: HiddenCall) -> Any:  # noqa: ANN401  whatever the call gives
    """Run a hand-written Function, or a constructor of a new leaf."""
    if hidden.is_function:
        return _run_function(tracker, hidden) if tracker.suspended else _observe_function(tracker, hidden)
    inputs = tensors_in((hidden.args, hidden.keywords))
    if tracker.suspended or not inputs:
        return hidden.run()
    if hidden.name == "Variable":
        return tracker.observe(hidden.cls, hidden.name, inputs, hidden.run)
    made = hidden.run()
    tracker.follow_wrapping(inputs[0], made)
    return made


def _run_function(tracker: FlowTracker, hidden: HiddenCall) -> Any:  # noqa: ANN401
    tracker.suspended += 1
    try:
        result = hidden.run()
    finally:
        tracker.suspended -= 1
    if hidden.cls is CheckpointFunction:
        tracker.count_checkpoint(result)
    return result


def _observe_function(tracker: FlowTracker, hidden: HiddenCall) -> Any:  # noqa: ANN401
    """Run a hand-written Function, and keep its arguments."""
    inputs = tensors_in(hidden.args)
    with torch._C.DisableTorchFunction():  # the copies are no part of the model
        kept = pytree.tree_map(
            lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, hidden.args
        )
    needs = tuple(tensor.requires_grad for tensor in inputs)
    run = functools.partial(_run_function, tracker, hidden)
    result = tracker.observe(hidden.cls, hidden.name, inputs, run)
    node = next((tensor.grad_fn for tensor in tensors_in(result) if tensor.grad_fn is not None), None)
    if any(needs) and not hidden.cls.__module__.startswith("torch."):
        tracker.trace.calls.append(FunctionCall(hidden.cls, kept, needs, node, tracker.locator.here()))
    return result
