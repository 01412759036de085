"""OVERWRITTEN: forward writes to the parameter."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.training.training_events import TrainingEvidence

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
