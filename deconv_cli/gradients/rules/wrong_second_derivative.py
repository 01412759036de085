"""WRONG: the second derivative by autograd differs from finite differences of the gradient."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.finding import Cause, Finding, Verdict
from deconv_cli.gradients.finite_differences.comparison import Outcome
from deconv_cli.gradients.tracing.code_location import CodeLocation


def find_wrong_second_derivative(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter whose first derivative is right and whose second is not."""
    found = evidence.second_comparison(name)
    if found is None or found.outcome is not Outcome.DIFFERS:
        return None
    why = (
        f"the second derivative at {list(found.element or ())} is {found.autograd:.6g} by autograd and "
        f"{found.numeric:.6g} ± {found.error_bar:.1g} by finite differences of the gradient."
    )
    suggestion = "write backward with torch functions of saved tensors, so that it can be differentiated itself"
    return Finding(Verdict.WRONG, (Cause("second derivative", CodeLocation(), why, suggestion),))
