"""LOSS INPUT, BATCH-LEAK, IN-PLACE, OVERWRITTEN: losses, samples, tensors and parameters used wrongly."""

from __future__ import annotations

import re
from collections.abc import Sequence

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict, first_line, unique_causes
from deconv_cli.gradients.tracing.code_location import CodeLocation, location_of_backward, location_of_error
from deconv_cli.gradients.tracing.forward_trace import InPlaceWrite


def find_loss_input(evidence: Evidence) -> list[Finding]:
    """Find misused losses, one finding for each line."""
    findings = {}
    for call in evidence.forward.loss_calls:
        if call.name.endswith("softmax"):
            continue  # a softmax over one class is no loss, and may be meant, as in attention to a single token
        first, second = call.shapes
        why, suggestion = (text.format(name=call.name, first=first, second=second) for text in call.misuse.value)
        cause = Cause(f"{call.name.strip('_')}(...)", call.location, why, suggestion)
        findings[str(call.location), call.misuse] = Finding(Verdict.LOSS_INPUT, (cause,))
    return list(findings.values())


_OVER_TIME = ("lstm", "gru", "rnn_tanh", "rnn_relu", "multi_head_attention_forward", "transformer_encoder_layer_fwd")
_SHAPES = ("reshape", "view", "flatten", "unflatten", "t", "transpose", "permute", "movedim", "swapaxes", "T", "mT")


def find_batch_leak(evidence: Evidence) -> list[Finding]:
    """Find that samples mix in evaluation mode, and the first operation that mixes them."""
    batch = evidence.batch
    if not batch.is_mixed:
        return []
    axis, causes = batch.axis, []
    if batch.mixer is not None:
        label, bare = batch.mixer.label, batch.mixer.bare_name
        why = f"{label} mixes the samples along axis {axis}: each output then depends on the whole batch."
        suggestion = f"apply {label} only to the axes within a sample, for instance dim=-1 instead of dim={axis}"
        if bare in _SHAPES:
            suggestion = f"leave axis {axis} as it is in {label}, as x.reshape(len(x), -1) does"
        elif bare in _OVER_TIME:
            why = f"{label} reads axis {axis} as time and the next one as samples, unless batch_first is set."
            suggestion = "make the layer with batch_first=True"
        causes = [Cause(label, batch.mixer.location, why, suggestion)]
    detail = f"with sample 0 replaced, the outputs of other samples along axis {axis} change (in evaluation mode)"
    return [Finding(Verdict.BATCH_LEAK, tuple(causes), detail)]


_NOT_IN_FORWARD = (
    "write to weights before forward and not in it; to share a weight, use one Parameter: b.weight = a.weight"
)
_TO_A_COPY = "write to a copy: x = x.clone() before this line, or use torch.where"


def find_in_place(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter whose gradient needs a tensor that was overwritten."""
    if not evidence.parameters[name].requires_grad or not evidence.is_reached(name):
        return None
    causes = _causes_of_writes(evidence)
    return Finding(Verdict.IN_PLACE, causes) if causes is not None else None


def find_in_place_in_model(evidence: Evidence) -> list[Finding]:
    """Find the write itself."""
    causes, error = _causes_of_writes(evidence), evidence.backward.error
    return [Finding(Verdict.IN_PLACE, causes, first_line(error))] if causes is not None and error is not None else []


def _causes_of_writes(evidence: Evidence) -> tuple[Cause, ...] | None:
    writes = _writes_at_fault(evidence.backward.error, evidence.forward.writes)
    return None if writes is None else unique_causes(_cause_of_write(evidence, write) for write in writes)


def _cause_of_write(evidence: Evidence, write: InPlaceWrite) -> Cause:
    label, location = write.operation.label, write.operation.location
    why = f"{label} overwrites a tensor of shape {write.shape} that backward still needs."
    if not location.file:
        suggestion = "make the layer with inplace=False"
    elif location in evidence.forward.parameter_writes.values():
        suggestion = _NOT_IN_FORWARD
    else:
        suggestion = _line_out_of_place(location.code) or _TO_A_COPY
    return Cause(label, location, why, suggestion)


_MESSAGE = re.compile(
    r"\[torch\.\w+ \[([\d, ]*)\]\](?:, which is output \d+ of (\w+))?, is at version (\d+); expected version (\d+)"
)
"""Torch's message on an overwritten tensor: its shape, the node that made it, and its counts of writes."""


def _writes_at_fault(error: Exception | None, writes: Sequence[InPlaceWrite]) -> list[InPlaceWrite] | None:
    """List the writes that fit torch's message on an overwritten tensor; None for another error."""
    found = _MESSAGE.search(str(error)) if error is not None else None
    if found is None:
        return None
    shape = tuple(int(size) for size in found[1].split(",") if size.strip())
    node, actual, expected = found[2], int(found[3]), int(found[4])
    fitting = [write for write in writes if write.shape == shape and expected < write.version <= actual]
    exact = [write for write in fitting if node is None or write.node == node]
    return exact or fitting or list(writes)


def _line_out_of_place(source: str) -> str | None:
    """Write a line that makes a new tensor instead; None where that is not certain."""
    augmented = re.fullmatch(r"([\w.\[\]]+)\s*([-+*/@])=\s*(.+)", source)
    if augmented and "[" not in augmented[1]:
        return f"{augmented[1]} = {augmented[1]} {augmented[2]} {augmented[3]}"
    method = re.fullmatch(r"(?:([\w.]+)\s*=\s*)?([\w.]+)\.(\w+)_\((.*)\)", source)
    if method:
        return f"{method[1] or method[2]} = {method[2]}.{method[3]}({method[4]})"
    return None


def find_failing_backward(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter behind a backward that raises an error."""
    error = evidence.backward.error
    if error is None or not evidence.parameters[name].requires_grad or not evidence.is_reached(name):
        return None
    return Finding(Verdict.WRONG, (_cause_of_error(evidence, error),))


def _cause_of_error(evidence: Evidence, error: Exception) -> Cause:
    """Name the line that raised the error, or the Function that torch names in its message."""
    message, location, forward = first_line(error), location_of_error(error), evidence.forward
    why = f"backward raises {type(error).__name__}: {message}."
    if location is not None and location.file:
        return Cause("backward", location, why, "correct this line of the hand-written backward, or of the hook")
    for call in forward.calls:
        if f"{call.function.__name__}Backward" in message:
            suggestion = "return one gradient for each input of forward, each of the shape of its input"
            name = f"{call.function.__name__}.backward"
            return Cause(name, location_of_backward(call.function), why, suggestion)
    graph = evidence.forward.graph
    for node, label in graph.labels.items():
        if type(node).__name__ == "NotImplemented":
            suggestion = "replace it by an operation that torch can differentiate"
            return Cause(label, graph.location_of(node), why, suggestion)
    return Cause("backward", CodeLocation(), why, "look at the message of torch")


def find_overwritten(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter that every pass of forward resets."""
    location = evidence.overwritten.get(name)
    if location is None:
        return None
    why = "forward resets this parameter to the same values, so an optimizer's step is lost."
    suggestion = "set it once in __init__; keep values that each pass computes in a local variable"
    return Finding(Verdict.OVERWRITTEN, (Cause("a write to a parameter", location, why, suggestion),))
