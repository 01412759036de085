"""GRADIENT LOST, CLIPPING, ACCUMULATED: gradients that are cleared too early or never, skipped or clipped in vain."""

from __future__ import annotations

import math

from deconv_cli.gradients.findings import Cause, Finding, Verdict, unique_causes
from deconv_cli.gradients.rules.failing_script import DETACH_CARRIED
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.training.training_events import IdleReason, OptimizerStep, TrainingEvents, TrainingEvidence

_NOTHING = 1e-6


def find_gradient_lost(evidence: TrainingEvidence) -> list[Finding]:
    """Find what happens to gradients between backward and the first step of each optimizer."""
    if not evidence.first_steps:
        return [_skipped(evidence.events.n_skipped)] if evidence.events.n_skipped > 1 else []
    found = [cause for step in evidence.first_steps if (cause := _lost_before(step)) is not None]
    found = found or _wasted(evidence.events)
    return [Finding(Verdict.GRADIENT_LOST, unique_causes(found))] if found else []


def _lost_before(step: OptimizerStep) -> Cause | None:
    if step.norm_after_backward and not step.norm_at_step:
        location = step.cleared_at or step.location
        why = "the gradients are cleared between backward() and step(), so that the step has nothing to go by."
        return Cause("zero_grad()", location, why, "call zero_grad() before backward(), or after step()")
    clipping = step.clipping
    if clipping is not None and clipping.limit < _NOTHING * clipping.norm_before:
        why = f"gradients of norm {clipping.norm_before:.3g} are clipped to {clipping.limit:.3g}: next to nothing."
        suggestion = "clip at a norm that usual gradients stay below, such as 1.0"
        return Cause("clipping", clipping.location, why, suggestion)
    return None


def _wasted(events: TrainingEvents) -> list[Cause]:
    """Find gradients of several passes that are to add up, but are cleared before each of the passes.

    Code that puts gradients together by itself clears them too, but then takes a step by other ones.
    """
    for step in events.steps if not events.n_skipped else ():
        cleared = events.wasted.get(step.backward, [])
        is_of_last = step.clipping is not None or math.isclose(
            step.norm_at_step, step.norm_after_backward, rel_tol=1e-4
        )
        if len(cleared) > 1 and is_of_last:
            why = (
                f"the gradients of {len(cleared)} backward passes are cleared before any step uses them, so that each "
                "step goes by those of the last pass alone."
            )
            suggestion = "call zero_grad() once for each step, right after optimizer.step()"
            return [Cause("zero_grad()", cleared[0], why, suggestion)]
    return []


def _skipped(n_skipped: int) -> Finding:
    why = f"the gradient scaler left out all of {n_skipped} steps, since gradients overflow when they are scaled."
    suggestion = "look for NaN or infinity in the gradients; begin with a smaller init_scale"
    return Finding(Verdict.GRADIENT_LOST, (Cause("scaler.step()", CodeLocation(), why, suggestion),))


_BETWEEN = "call it between loss.backward() and optimizer.step()"
_EXPLANATIONS = {
    IdleReason.NO_WEIGHTS: (
        "it is given an iterator that was used up before, as by the optimizer, so that it limits no gradient.",
        "call parameters() again: clip_grad_norm_(model.parameters(), ...)",
    ),
    IdleReason.NO_GRADIENTS: (
        "no weight that it is given has a gradient then, so that the step goes by gradients without a limit.",
        f"{_BETWEEN}, for the weights that the optimizer holds",
    ),
    IdleReason.TOO_EARLY: (
        "a later backward pass adds to the gradients that it limits, so that the step goes by more than the limit.",
        "call it after the last loss.backward() before optimizer.step()",
    ),
    IdleReason.USED: ("the step has used these gradients already, without a limit.", _BETWEEN),
    IdleReason.SCALED: (
        "the gradients are still multiplied by the scale of the GradScaler, by which the step divides them afterwards: "
        "they end as much smaller than the limit.",
        "call scaler.unscale_(optimizer) right before it",
    ),
}


def find_idle_clipping(evidence: TrainingEvidence) -> list[Finding]:
    """Find such calls, once for each line."""
    return [
        Finding(Verdict.CLIPPING, (Cause("clipping", found.location, *_EXPLANATIONS[found.reason]),))
        for found in evidence.events.idle_clippings.values()
    ]


_STALE = "gradients of the step before are still there and the new ones are added: steps go on in old directions."
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
        return [Finding(Verdict.ACCUMULATED, (Cause("optimizer.step()", stale[0].location, _STALE, suggestion),))]
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
    return [Finding(Verdict.ACCUMULATED, (Cause("backward()", location, _STALE, suggestion),))]
