"""ACCUMULATED: a step uses the gradients of earlier steps again, since nothing cleared them."""

from __future__ import annotations

from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.rules.failing_script import DETACH_CARRIED
from deconv_cli.gradients.training.training_events import TrainingEvidence

_WHY = "gradients of the step before are still there and the new ones are added: steps go on in old directions."
_OF_ANOTHER_LOSS = (
    "gradients that another loss gave these weights, for the step of another optimizer, are still there, and those of "
    "this loss are added: the step goes half of its way for the other loss."
)
_OF_OLD_TURNS = (
    "its graph reaches back past the last step: gradients go through earlier turns of the loop, with the weights of "
    "then, and each turn takes more time and memory."
)


def find_accumulated(evidence: TrainingEvidence) -> list[Finding]:
    """Find a step with gradients that were not cleared since the step before."""
    stale = [step for step in evidence.events.steps if not step.is_fresh]
    if stale:
        suggestion = "call optimizer.zero_grad() once for each step, before backward"
        return [Finding(Verdict.ACCUMULATED, (Cause("optimizer.step()", stale[0].location, _WHY, suggestion),))]
    mixed = [step for step in evidence.events.steps if step.is_mixed]
    if mixed:
        suggestion = f"call zero_grad() of this {mixed[0].name} right before the backward of its own loss"
        cause = Cause("optimizer.step()", mixed[0].location, _OF_ANOTHER_LOSS, suggestion)
        return [Finding(Verdict.ACCUMULATED, (cause,))]
    if evidence.events.carried is not None and evidence.events.failure is None:
        cause = Cause("backward()", evidence.events.carried, _OF_OLD_TURNS, DETACH_CARRIED)
        return [Finding(Verdict.ACCUMULATED, (cause,))]
    location = evidence.events.accumulated_by_hand
    if location is None:
        return []
    suggestion = "set .grad = None for every weight after it was changed"
    return [Finding(Verdict.ACCUMULATED, (Cause("backward()", location, _WHY, suggestion),))]
