"""NOISY: the loss differs from run to run with one seed, so nothing can be said of its derivative."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.tracing.code_location import CodeLocation

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
