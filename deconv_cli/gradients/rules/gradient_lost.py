"""GRADIENT LOST: what backward gave does not reach the step: cleared, clipped to nothing, or skipped."""

from __future__ import annotations

import math

from deconv_cli.gradients.findings import Cause, Finding, Verdict, unique_causes
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.training.training_events import OptimizerStep, TrainingEvents
from deconv_cli.gradients.training.training_evidence import TrainingEvidence

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
