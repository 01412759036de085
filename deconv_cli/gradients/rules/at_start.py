"""ZERO AT START, VANISHING AT START: what holds a gradient back is gone after an optimizer step or two."""

from __future__ import annotations

from dataclasses import replace

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Finding, Verdict
from deconv_cli.gradients.rules.vanishing import COLLAPSE, find_vanishing
from deconv_cli.gradients.rules.zero_gradient import find_zero

_SUGGESTION = "nothing: such a start is usual for the last layer of a branch, and training goes on from it"


def find_zero_at_start(evidence: Evidence, name: str) -> Finding | None:
    """Find a zero gradient that a step or two set free, as behind a layer that starts at zero."""
    found = find_zero(evidence, name) if evidence.first_steps is not None else None
    if found is None or evidence.first_steps is None:
        return None
    return _at_start(Verdict.ZERO_AT_START, found, evidence.first_steps.steps_until_given(name))


def find_vanishing_at_start(evidence: Evidence, name: str) -> Finding | None:
    """Find a tiny gradient that a step or two make usual, as behind a layer scale."""
    found = find_vanishing(evidence, name) if evidence.first_steps is not None else None
    if found is None or evidence.first_steps is None:
        return None
    n_steps = evidence.first_steps.steps_until_above(name, evidence.layers[0].name, COLLAPSE)
    return _at_start(Verdict.VANISHING_AT_START, found, n_steps)


def _at_start(verdict: Verdict, found: Finding, n_steps: int | None) -> Finding | None:
    if n_steps is None:
        return None
    after = "an optimizer step" if n_steps == 1 else f"{n_steps} optimizer steps"
    detail = f"at the start only: after {after} the gradient is there"
    return Finding(verdict, tuple(replace(cause, suggestion=_SUGGESTION) for cause in found.causes), detail)
