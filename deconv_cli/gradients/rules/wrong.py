"""WRONG: autograd and finite differences disagree, shown at one element."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.finding import Finding, Verdict
from deconv_cli.gradients.finite_differences.comparison import Outcome, describe_factor
from deconv_cli.gradients.recurrence.gates import gates_of


def find_wrong(evidence: Evidence, name: str) -> Finding | None:
    """Find a gradient that differs from finite differences, with no operation to name."""
    detail = describe_difference(evidence, name)
    return Finding(Verdict.WRONG, detail=detail) if detail else None


def describe_difference(evidence: Evidence, name: str) -> str:
    """Write what both give at the element that shows the difference; empty where there is none."""
    found = evidence.comparison(name)
    if found is None or found.outcome is not Outcome.DIFFERS:
        return ""
    gates, element = gates_of(evidence.model, name), list(found.element or ())
    gate = ""
    if element and len(gates) > 1:
        gate = f" (gate {gates[element[0] * len(gates) // evidence.parameters[name].shape[0]]})"
    text = (
        f"at {element}{gate} autograd gives {found.autograd:.6g}, finite differences {found.numeric:.6g} ± "
        f"{found.error_bar:.1g}"
    )
    if found.n_tried > 1:
        text += f"; {found.n_wrong} of {found.n_tried} elements tried are wrong"
    if found.ratio is not None and found.n_wrong > 1:
        text += f", {describe_factor(found.ratio, found.ratio_range)}"
    return text
