"""NOT CHECKED: the gradient arrives, but finite differences do not decide whether it is right."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.finding import Finding, Verdict


def find_not_checked(evidence: Evidence, name: str) -> Finding:
    """Find any parameter, with the reason why nothing more is known of it."""
    found = evidence.comparison(name)
    if evidence.parameters[name].is_complex():
        reason = "complex parameters are not compared with finite differences"
    elif found is None:
        reason = f"the budget of {evidence.budget:g} s was spent"
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
