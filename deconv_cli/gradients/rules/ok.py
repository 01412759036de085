"""OK: the gradient arrives, and agrees with finite differences."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.finding import Finding, Verdict
from deconv_cli.gradients.finite_differences.comparison import Outcome


def find_ok(evidence: Evidence, name: str) -> Finding | None:
    """Find a gradient that is right."""
    return Finding(Verdict.OK) if evidence.outcome(name) is Outcome.AGREES else None
