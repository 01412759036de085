"""OK, NONDIFFERENTIABLE, NOT CHECKED, NOISY: what finite differences say of a gradient that is not wrong."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.finite_differences.directional import Outcome
from deconv_cli.gradients.tracing.code_location import CodeLocation


def find_ok(evidence: Evidence, name: str) -> Finding | None:
    """Find a gradient that is right."""
    if evidence.double is not None and name in evidence.double.minima:
        return Finding(Verdict.OK, detail="it is zero at a minimum: the loss moves with the square of a step")
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


_ROUNDING = 1e-5
"""Relative difference of two runs up to which it is taken for sums in a changing order."""


def find_noisy(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter with a gradient that cannot be checked."""
    is_noisy = evidence.repetition.is_noisy and evidence.gradient(name) is not None
    return Finding(Verdict.NOISY, (_cause(evidence),)) if is_noisy else None


def find_noisy_model(evidence: Evidence) -> list[Finding]:
    """Find the noise itself."""
    found = evidence.repetition
    detail = f"two runs with the same seed gave the losses {found.first:.9g} and {found.second:.9g}"
    return [Finding(Verdict.NOISY, (_cause(evidence),), detail)] if found.is_noisy else []


def _cause(evidence: Evidence) -> Cause:
    found = evidence.repetition
    relative = abs(found.first - found.second) / max(abs(found.first), abs(found.second))
    differs = f"the loss differs by {relative:.1g} from run to run"
    if relative <= _ROUNDING:
        operation, location = "a non-deterministic operation", CodeLocation()
        why = f"{differs}: sums are taken in a changing order."
        suggestion = "torch.use_deterministic_algorithms(True)"
    elif not found.drawn:
        operation, location = "state that outlives a run", CodeLocation()
        why = f"{differs}: the model keeps something of each run for the next, or draws random numbers elsewhere."
        suggestion = "give the state as an input of forward, and return it; draw with torch's own generator"
    else:
        operation, location = found.drawn[0].label, found.drawn[0].location
        why = f"{differs}: random numbers are drawn that no seed reaches."
        suggestion = "draw with torch's own generator, so that torch.manual_seed reaches it"
    return Cause(operation, location, why, suggestion)
