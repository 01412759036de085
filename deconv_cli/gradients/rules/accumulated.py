"""ACCUMULATED: a step uses the gradients of earlier steps again, since nothing cleared them."""

from __future__ import annotations

from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.training.training_evidence import TrainingEvidence

_WHY = "gradients of the step before are still there and the new ones are added: steps go on in old directions."


def find_accumulated(evidence: TrainingEvidence) -> list[Finding]:
    """Find a step with gradients that were not cleared since the step before."""
    stale = [step for step in evidence.events.steps if not step.is_fresh]
    if stale:
        suggestion = "call optimizer.zero_grad() once for each step, before backward"
        return [Finding(Verdict.ACCUMULATED, (Cause("optimizer.step()", stale[0].location, _WHY, suggestion),))]
    location = evidence.events.accumulated_by_hand
    if location is None:
        return []
    suggestion = "set .grad = None for every weight after it was changed"
    return [Finding(Verdict.ACCUMULATED, (Cause("backward()", location, _WHY, suggestion),))]
