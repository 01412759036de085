"""FROZEN: `requires_grad` is off."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.finding import Finding, Verdict


def find_frozen(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter that is not to be trained."""
    return None if evidence.parameters[name].requires_grad else Finding(Verdict.FROZEN)
