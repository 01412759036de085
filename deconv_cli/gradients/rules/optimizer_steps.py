"""OPTIMIZER, GRADIENT LOST, ACCUMULATED, FAILS: what a training script does with its gradients."""

from __future__ import annotations

from deconv_cli.gradients.findings import WITHOUT_GRADIENT, Cause, Finding, Verdict, unique_causes
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.training.optimizer_watch import Failure, OptimizerStep, TrainingEvidence
from deconv_cli.vocabulary import name_some

_FEW_PASSES = 2
_MANY_SKIPPED = 10
"""A gradient scaler halves its scale at each skipped step, so it usually skips fewer at the start."""

_NEXT_TO_NOTHING = 1e-6
"""A smaller share of a gradient is lost."""


def find_weights_not_held(evidence: TrainingEvidence) -> list[Finding]:
    """Find weights with a gradient that no optimizer holds, or an optimizer of another object's weights."""
    events, given = evidence.events, evidence.with_gradient
    held = frozenset().union(*events.held.values())
    missing = [name for name, weight in given.items() if id(weight) not in held]
    if not events.held or not missing:
        return []
    if len(missing) == len(given):
        why = (
            "no optimizer holds any weight that gets a gradient: it was created with the parameters of another object."
        )
        suggestion = "create the optimizer with parameters() of this model, after the last line that replaces the model"
    else:
        why = f"no optimizer holds {name_some(missing, 4)}, so they never change though they get gradients."
        suggestion = "give the optimizer these weights too, or freeze them with requires_grad_(False)"
    keys = [step.optimizer for step in events.first_steps] or list(events.held)
    location = events.created_at.get(keys[0]) or next((step.location for step in events.first_steps), CodeLocation())
    return [_of_optimizer(location, why, suggestion, "the optimizer")]


def _of_optimizer(location: CodeLocation, why: str, suggestion: str, operation: str = "optimizer.step()") -> Finding:
    return Finding(Verdict.OPTIMIZER, (Cause(operation, location, why, suggestion),))


def find_step_without_effect(evidence: TrainingEvidence) -> list[Finding]:
    """Find steps that leave all weights unchanged, or that are never taken."""
    lost = find_gradient_lost(evidence)
    idle = [_idle(step, evidence) for step in evidence.events.first_steps if not lost]
    return [found for found in (*idle, _never_stepping(evidence)) if found is not None]


def _idle(first: OptimizerStep, evidence: TrainingEvidence) -> Finding | None:
    """Explain an optimizer whose steps change nothing; a learning rate of 0 at the start is a usual warm-up."""
    steps = [step for step in evidence.events.steps if step.optimizer == first.optimizer and step.n_given]
    if not steps or any(step.n_changed for step in steps):
        return None
    last = steps[-1]
    why = f"{last.name}.step() changes none of the {last.n_given} weights with a gradient"
    if last.learning_rate == 0:
        why, suggestion = f"{why}: its learning rate is 0.", "give the optimizer a learning rate above 0"
    else:
        why = f"{why}: the change is below what their precision can hold."
        suggestion = "keep the weights in float32 and use torch.autocast for bfloat16, or raise the learning rate"
    return _of_optimizer(last.location, why, suggestion)


def _never_stepping(evidence: TrainingEvidence) -> Finding | None:
    """Find weights with a gradient whose optimizer takes no step in two passes, while all others do."""
    events = evidence.events
    is_too_short = events.n_backward < _FEW_PASSES or 0 < events.n_skipped < _MANY_SKIPPED
    if events.moved_by_hand or is_too_short or events.is_cut_short:
        return None
    stepping = {step.optimizer for step in events.steps}
    moved = frozenset().union(*(held for key, held in events.held.items() if key in stepping))
    held = frozenset().union(*events.held.values()) - moved
    names = [name for name, weight in evidence.with_gradient.items() if id(weight) in held]
    if events.failure is not None or not names:
        return None
    why = f"an optimizer holds {name_some(names, 1)}, but made no step in {events.n_backward} backward passes."
    suggestion = (
        "call optimizer.step() after loss.backward(); if a gradient scaler skips every step, look for NaN or "
        "infinity in the gradients"
    )
    return _of_optimizer(CodeLocation(), why, suggestion, "no optimizer.step()")


def find_gradient_lost(evidence: TrainingEvidence) -> list[Finding]:
    """Find gradients that are cleared or clipped to nothing between backward and a step."""
    causes = [cause for step in evidence.events.first_steps if (cause := _lost_before(step)) is not None]
    return [Finding(Verdict.GRADIENT_LOST, unique_causes(causes))] if causes else []


def _lost_before(step: OptimizerStep) -> Cause | None:
    if step.norm_after_backward and not step.norm_at_step:
        location = step.cleared_at or step.location
        why = "the gradients are cleared between backward() and step(), so the step has none."
        return Cause("zero_grad()", location, why, "call zero_grad() before backward(), or after step()")
    before, after = step.norm_after_backward, step.norm_at_step
    if after < _NEXT_TO_NOTHING * before:
        why = f"gradients of norm {before:.3g} after backward() have norm {after:.3g} at this step: next to nothing."
        suggestion = "look at what changes them in between; clip at a norm that usual gradients stay below, such as 1.0"
        return Cause("optimizer.step()", step.location, why, suggestion)
    return None


_STALE = "the gradients of the previous step remain and the new ones are added: steps follow old directions."


def find_accumulated(evidence: TrainingEvidence) -> list[Finding]:
    """Find a step with gradients that were not cleared since the step before."""
    events = evidence.events
    stale = [step for step in events.steps if not step.is_fresh]
    if stale:
        location, suggestion = stale[0].location, "call optimizer.zero_grad() once for each step, before backward"
        cause = Cause("optimizer.step()", location, _STALE, suggestion)
    elif events.accumulated_by_hand is not None:
        suggestion = "set .grad = None for every weight after it was changed"
        cause = Cause("backward()", events.accumulated_by_hand, _STALE, suggestion)
    else:
        return []
    return [Finding(Verdict.ACCUMULATED, (cause,))]


_TWICE = (
    "call backward() once on the sum of the losses, or detach their common part in one of them: net(fake.detach()); "
    "also detach what one turn of the loop passes to the next: state = state.detach()"
)
_WRITTEN = (
    "run forward again after the step, since its earlier results belong to the old weights, and detach what one turn "
    "of the loop passes to the next: state = state.detach()"
)
_SUGGESTIONS = {
    "backward through the graph a second time": _TWICE,
    "modified by an inplace operation": _WRITTEN,
    "does not require grad and does not have a grad_fn": (
        "before forward runs, switch gradients on again, torch.set_grad_enabled(True), and let the weights to train "
        "require them, requires_grad_()"
    ),
    "grad can be implicitly created only for scalar outputs": "reduce the loss to one number: loss.mean().backward()",
}


def find_failing_script(evidence: TrainingEvidence) -> list[Finding]:
    """Find that the script ends with an error that no other finding explains."""
    failure = evidence.events.failure
    if failure is None or _is_explained(failure, evidence):
        return []
    if failure.reads_missing_gradient:
        return [_of_missing_gradient(failure, evidence)]
    why = f"the script fails here during training: {failure.kind}: {failure.message}."
    known = (suggestion for words, suggestion in _SUGGESTIONS.items() if words in failure.message)
    suggestion = next(known, "correct this line")
    return [Finding(Verdict.FAILS, (Cause("an error", failure.location, why, suggestion),))]


def _is_explained(failure: Failure, evidence: TrainingEvidence) -> bool:
    """Return whether other findings already explain the error."""
    findings = [*(found for found in evidence.report.parameters if found.is_fault), *evidence.report.general]
    verdicts, message = {found.verdict for found in findings}, failure.message
    is_without = not verdicts.isdisjoint(WITHOUT_GRADIENT)
    return (
        any(message in cause.why for found in findings for cause in found.causes)
        or (is_without and (failure.reads_missing_gradient or "does not require grad" in message))
        or (Verdict.IN_PLACE in verdicts and "modified by an inplace operation" in message)
        or (Verdict.UNREGISTERED in verdicts and "backward through the graph a second time" in message)
    )


def _of_missing_gradient(failure: Failure, evidence: TrainingEvidence) -> Finding:
    cleared_at = evidence.events.cleared_at
    if cleared_at is not None:
        why = "the gradients are cleared here, after backward() and before the script reads them: .grad is None."
        cause = Cause("zero_grad()", cleared_at, why, "call zero_grad() before backward()")
        return Finding(Verdict.GRADIENT_LOST, (cause,))
    frozen = [found.name for found in evidence.report.parameters if found.verdict == Verdict.FROZEN]
    why = "this line reads .grad of a weight that no backward pass reaches, so it is None"
    suggestion = "read .grad of the model on which backward() ran, and skip weights whose .grad is None"
    if frozen:
        why = f"this line reads .grad of a frozen weight, so it is None: requires_grad is off for {frozen[0]}"
        suggestion = "skip frozen weights, or let them require gradients, requires_grad_()"
    return Finding(Verdict.FAILS, (Cause("an error", failure.location, f"{why}.", suggestion),))
