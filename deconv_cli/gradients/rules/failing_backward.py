"""WRONG: backward raises an error, in a hand-written Function, in a hook or in torch itself."""

from __future__ import annotations

import re

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict, first_line
from deconv_cli.gradients.tracing.backward_lines import BackwardSource
from deconv_cli.gradients.tracing.code_location import CodeLocation, location_of_backward, location_of_error
from deconv_cli.gradients.tracing.forward_trace import Operation


def find_failing_backward(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter whose gradient would have come through the error."""
    error = evidence.backward_error
    if error is None or not evidence.parameters[name].requires_grad or not evidence.is_reached(name):
        return None
    return Finding(Verdict.WRONG, (_cause(evidence, error),))


def _cause(evidence: Evidence, error: Exception) -> Cause:
    """Name the line that raised, or the Function or hook that torch names."""
    message, location, log = first_line(error), location_of_error(error), evidence.forward.log
    why = f"backward raises {type(error).__name__}: {message}."
    if location is not None and location.file:
        if any(
            (hook.location.file, hook.location.function) == (location.file, location.function) for hook in log.hooks
        ):
            return Cause("a gradient hook", location, why, "correct this line of the hook, or remove the hook")
        return Cause("backward", location, why, "correct this line of the hand-written backward")
    for call in log.calls:
        if f"{call.function.__name__}Backward" in message:
            suggestion = "return one gradient for each input of forward, each of the shape of its input"
            name, place = f"{call.function.__name__}.backward", re.search(r"at index (\d+)", message)
            where = BackwardSource(call.function).of_return(int(place[1])) if place else None
            return Cause(name, where or location_of_backward(call.function), why, suggestion)
    for hook in log.hooks:
        if f"hook '{hook.location.function}'" in message:
            suggestion = "return a gradient of the same shape from the hook"
            return Cause("a gradient hook", hook.location, why, suggestion)
    graph = evidence.forward.graph
    for node, label in graph.labels.items():
        if type(node).__name__ == "NotImplemented":
            return Cause(label, graph.location_of(node), why, _without_derivative(Operation(label, CodeLocation())))
    return Cause("backward", CodeLocation(), why, "look at the message of torch")


def _without_derivative(operation: Operation) -> str:
    if "floordiv" in operation.bare_name or operation.bare_name == "floor_divide":
        return "for a straight-through gradient: x / d + (x // d - x / d).detach()"
    return "replace it by an operation that torch can differentiate"
