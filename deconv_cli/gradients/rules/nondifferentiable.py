"""NONDIFFERENTIABLE: the loss has a corner here, and autograd gives a slope between those of the two sides."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.finding import Finding, Verdict
from deconv_cli.gradients.finite_differences.comparison import Outcome


def find_nondifferentiable(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter at a corner of the loss."""
    if evidence.outcome(name) is not Outcome.KINK:
        return None
    detail = "the slopes on the two sides differ, and autograd gives one between them"
    return Finding(Verdict.NONDIFFERENTIABLE, detail=detail)
