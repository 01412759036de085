"""IN-PLACE: a tensor that backward needs was overwritten."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict, first_line, unique_causes
from deconv_cli.gradients.fix_trial import line_out_of_place, writes_at_fault
from deconv_cli.gradients.tracing.forward_trace import InPlaceWrite

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
