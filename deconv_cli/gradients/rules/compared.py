"""OK, NONDIFFERENTIABLE, NOT CHECKED: what finite differences say of a gradient that is not wrong."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Finding, Verdict
from deconv_cli.gradients.finite_differences.directional import Outcome


def find_ok(evidence: Evidence, name: str) -> Finding | None:
    """Find a gradient that is right."""
    return Finding(Verdict.OK) if evidence.outcome(name) is Outcome.AGREES else None


def find_nondifferentiable(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter at a corner of the loss."""
    if evidence.outcome(name) is not Outcome.KINK:
        return None
    detail = "the slopes on the two sides differ, and autograd gives one between them"
    return Finding(Verdict.NONDIFFERENTIABLE, detail=detail)


def find_not_checked(evidence: Evidence, name: str) -> Finding:
    """Find any parameter, with the reason why nothing more is known of it."""
    found = evidence.comparison(name)
    if found is None:
        reason = f"the budget of {evidence.budget:g} s was spent"
    elif evidence.overwritten:
        reason = "forward writes to a parameter, so that finite differences cannot judge this gradient"
    elif abs(found.autograd - found.numeric) > 20 * found.error_bar:
        reason = (
            f"autograd ({found.autograd:.6g}) and finite differences ({found.numeric:.6g} ± {found.error_bar:.1g}) "
            "differ along a direction, but no single element was found to be wrong"
        )
    else:
        reason = (
            f"finite differences are not sharp enough here (autograd {found.autograd:.4g}, numeric "
            f"{found.numeric:.4g} ± {found.error_bar:.1g})"
        )
    return Finding(Verdict.NOT_CHECKED, detail=reason)
