"""OPTIMIZER: it does not hold the weights that get gradients, or its step does not change them."""

from __future__ import annotations

from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.rules.gradient_lost import find_gradient_lost
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.training.training_evidence import TrainingEvidence

_FEW = 4


def find_weights_not_held(evidence: TrainingEvidence) -> list[Finding]:
    """Find weights that get a gradient and that no optimizer holds, and an optimizer of other weights altogether."""
    events, given = evidence.events, evidence.with_gradient
    if not events.held or not given:
        return []
    held = frozenset().union(*events.held)
    missing = [name for name, weight in given.items() if id(weight) not in held]
    if not missing:
        return []
    step = evidence.first_step
    location = step.location if step is not None else CodeLocation()
    if len(missing) == len(given):
        why = "no optimizer holds any weight that gets a gradient: it was made of the parameters of another object."
        suggestion = "make the optimizer of parameters() of this model, after the last line that replaces the model"
    else:
        shown = ", ".join(missing[:_FEW]) + (f" and {len(missing) - _FEW} more" if len(missing) > _FEW else "")
        why = f"no optimizer holds {shown}, so that nothing ever changes them though they get gradients."
        suggestion = "give the optimizer these weights too, or freeze them with requires_grad_(False)"
    return [Finding(Verdict.OPTIMIZER, (Cause("optimizer.step()", location, why, suggestion),))]


def find_step_without_effect(evidence: TrainingEvidence) -> list[Finding]:
    """Find that steps leave the weights as they are, or are never taken."""
    events, step = evidence.events, evidence.first_step
    if step is None:
        is_missing = events.held and not events.moved_by_hand and not events.n_skipped and evidence.with_gradient
        return [_never(evidence)] if is_missing and events.n_backward > 1 else []
    if not step.n_given or step.n_changed or find_gradient_lost(evidence):
        return []
    why = f"{step.name}.step() leaves all {step.n_given} weights with a gradient as they are"
    if step.learning_rate == 0:
        why, suggestion = f"{why}: its learning rate is 0.", "give the optimizer a learning rate above 0"
    else:
        why = f"{why}: the change is below what their precision can hold."
        suggestion = "keep the weights in float32 and use torch.autocast for bfloat16, or raise the learning rate"
    return [Finding(Verdict.OPTIMIZER, (Cause("optimizer.step()", step.location, why, suggestion),))]


def _never(evidence: TrainingEvidence) -> Finding:
    n_passes = evidence.events.n_backward
    why = f"there is an optimizer, but no step of it in {n_passes} backward passes, and no weight changed."
    suggestion = "call optimizer.step() after loss.backward()"
    return Finding(Verdict.OPTIMIZER, (Cause("no optimizer.step()", CodeLocation(), why, suggestion),))
