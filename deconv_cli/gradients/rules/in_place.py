"""IN-PLACE: a tensor that backward needs was overwritten."""

from __future__ import annotations

import re

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict, first_line, unique_causes

_MESSAGE = re.compile(
    r"\[torch\.\w+ \[([\d, ]*)\]\](?:, which is output \d+ of (\w+))?, is at version (\d+); expected version (\d+)"
)
"""What torch says of the tensor: its shape, the node that made it, and how often it was written."""


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
    """List the writes that fit what torch says of the tensor; None where it says nothing of the kind."""
    found = _MESSAGE.search(str(evidence.backward_error)) if evidence.backward_error is not None else None
    if found is None:
        return None
    shape = tuple(int(size) for size in found[1].split(",") if size.strip())
    node, actual, expected = found[2], int(found[3]), int(found[4])
    writes = evidence.forward.log.writes
    fitting = [write for write in writes if write.shape == shape and expected < write.version <= actual]
    exact = [write for write in fitting if node is None or write.node == node]
    return unique_causes(
        Cause(
            write.operation.label,
            write.operation.location,
            f"{write.operation.label} overwrites a tensor of shape {shape} that backward still needs.",
            _out_of_place(write.operation.location.code),
        )
        for write in exact or fitting or writes
    )


def _out_of_place(source: str) -> str:
    """Write the line so that it makes a new tensor."""
    augmented = re.fullmatch(r"([\w.\[\]]+)\s*([-+*/@])=\s*(.+)", source)
    if augmented and "[" not in augmented[1]:
        return f"{augmented[1]} = {augmented[1]} {augmented[2]} {augmented[3]}"
    method = re.fullmatch(r"(?:([\w.]+)\s*=\s*)?([\w.]+)\.(\w+)_\((.*)\)", source)
    if method:
        return f"{method[1] or method[2]} = {method[2]}.{method[3]}({method[4]})"
    return "write to a copy: x = x.clone() before this line, or use torch.where"
