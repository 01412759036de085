"""OVERWRITTEN: forward writes to the parameter."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict


def find_overwritten(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter whose change by an optimizer the next pass undoes, or which every pass changes further."""
    found = evidence.overwritten.get(name)
    if found is None:
        return None
    if found.is_lost:
        why = "forward sets this parameter to the same values whatever they were, so that an optimizer's step is lost."
        suggestion = "set it once in __init__; what is computed anew in each pass is no parameter but a local variable"
    else:
        why = "each pass of forward changes this parameter further, beside the optimizer."
        suggestion = "compute with a changed copy and leave the parameter as it is"
    return Finding(Verdict.OVERWRITTEN, (Cause("a write to a parameter", found.location, why, suggestion),))
