"""IN-PLACE, OVERWRITTEN, WRONG: writes to tensors and parameters, and errors that backward raises."""

from __future__ import annotations

import re

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict, first_line, unique_causes
from deconv_cli.gradients.rewritten_lines import line_out_of_place, writes_at_fault
from deconv_cli.gradients.tracing.backward_lines import BackwardSource
from deconv_cli.gradients.tracing.code_location import CodeLocation, location_of_backward, location_of_error
from deconv_cli.gradients.tracing.forward_trace import InPlaceWrite, Operation
from deconv_cli.gradients.training.training_events import TrainingEvidence

_NOT_IN_FORWARD = (
    "write to weights before forward and not in it; what two layers share is one Parameter: b.weight = a.weight"
)

_TO_A_COPY = "write to a copy: x = x.clone() before this line, or use torch.where"


def find_in_place(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter whose gradient would have needed the tensor."""
    if not evidence.parameters[name].requires_grad or not evidence.is_reached(name):
        return None
    causes = _causes(evidence)
    return Finding(Verdict.IN_PLACE, causes) if causes is not None else None


def find_in_place_in_model(evidence: Evidence) -> list[Finding]:
    """Find the write itself."""
    causes, error = _causes(evidence), evidence.backward_error
    return [Finding(Verdict.IN_PLACE, causes, first_line(error))] if causes is not None and error is not None else []


def _causes(evidence: Evidence) -> tuple[Cause, ...] | None:
    writes = writes_at_fault(evidence.backward_error, evidence.forward.log.writes)
    return None if writes is None else unique_causes(_cause(evidence, write) for write in writes)


def _cause(evidence: Evidence, write: InPlaceWrite) -> Cause:
    label, location = write.operation.label, write.operation.location
    why = f"{label} overwrites a tensor of shape {write.shape} that backward still needs."
    if not location.file:
        return Cause(label, location, why, "make the layer with inplace=False")
    if location in evidence.forward.log.parameter_writes.values():
        return Cause(label, location, why, _NOT_IN_FORWARD)
    is_failing = str(location) in evidence.failing_fixes
    suggestion = _TO_A_COPY if is_failing else line_out_of_place(location.code) or _TO_A_COPY
    return Cause(label, location, why, suggestion)


def find_failing_backward(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter whose gradient would have come through the error."""
    error = evidence.backward_error
    if error is None or not evidence.parameters[name].requires_grad or not evidence.is_reached(name):
        return None
    return Finding(Verdict.WRONG, (_of_error(evidence, error),))


def _of_error(evidence: Evidence, error: Exception) -> Cause:
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


_LOST = "forward sets this parameter to the same values whatever they were, so that an optimizer's step is lost."

_DRIFTS = "each pass of forward changes this parameter further, beside the optimizer."

_A_COPY = "compute with a changed copy and leave the parameter as it is"

_SET_ONCE = "set it once in __init__; what is computed in each pass is no parameter but a local variable"


def find_overwritten(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter whose change by an optimizer the next pass undoes, or which every pass changes further."""
    found = evidence.overwritten.get(name)
    if found is None:
        return None
    if found.is_lost:
        why, suggestion = _LOST, _SET_ONCE
    else:
        why, suggestion = _DRIFTS, _A_COPY
    return Finding(Verdict.OVERWRITTEN, (Cause("a write to a parameter", found.location, why, suggestion),))


def find_overwritten_in_training(evidence: TrainingEvidence) -> list[Finding]:
    """Find weights that were, in the next pass, what they had been before a step changed them; once for each line."""
    names = {id(weight): name for name, weight in evidence.weights.items()}
    lines = {location: names[key] for key, location in evidence.events.overwritten.items() if key in names}
    drifting = {line: names[key] for key, line in evidence.events.drifting.items() if key in names}
    causes = [_set_back(name, location) for location, name in lines.items()]
    causes += [Cause(f"a write to {name}", line, _DRIFTS, _A_COPY) for line, name in drifting.items()]
    return [Finding(Verdict.OVERWRITTEN, (cause,)) for cause in causes]


def _set_back(name: str, location: CodeLocation) -> Cause:
    if location.file:
        return Cause(f"a write to {name}", location, _LOST, _SET_ONCE)
    why = f"{name} is back at its old value in the next pass, so that an optimizer's step is lost."
    suggestion = "load or set weights before the loop, and not in it"
    return Cause(f"a write to {name}", location, why, suggestion)
