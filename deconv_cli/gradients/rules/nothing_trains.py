"""NOTHING TRAINS: every parameter is frozen."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.tracing.code_location import CodeLocation


def find_nothing_trains(evidence: Evidence) -> list[Finding]:
    """Find that no parameter requires a gradient."""
    if any(parameter.requires_grad and parameter.numel() for parameter in evidence.parameters.values()):
        return []
    if any(parameter.requires_grad for parameter in evidence.parameters.values()):
        why = "no parameter that requires a gradient has any elements, so that no step changes anything."
        cause = Cause("no elements", CodeLocation(), why, "give the layers a width above 0")
        return [Finding(Verdict.NOTHING_TRAINS, (cause,))]
    why = f"requires_grad is off for all {len(evidence.parameters)} parameters, so that no step changes anything."
    suggestion = "call requires_grad_() on what is to be trained, after what is to stay was frozen"
    return [Finding(Verdict.NOTHING_TRAINS, (Cause("requires_grad_(False)", CodeLocation(), why, suggestion),))]
