"""OPTIMIZER: it does not hold the weights that get gradients, its step does not change them, or it is made anew."""

from __future__ import annotations

from collections import Counter

from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.rules.gradient_lost import find_gradient_lost
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.training.training_events import OptimizerStep, TrainingEvidence

_FEW = 4
_FEW_PASSES = 2


def find_weights_not_held(evidence: TrainingEvidence) -> list[Finding]:
    """Find weights that get a gradient and that no optimizer holds, and an optimizer of other weights altogether."""
    events, given = evidence.events, evidence.with_gradient
    if not events.held or not given:
        return []
    held = frozenset().union(*events.held.values())
    missing = [name for name, weight in given.items() if id(weight) not in held]
    if not missing:
        return []
    location = evidence.first_steps[0].location if evidence.first_steps else CodeLocation()
    if len(missing) == len(given):
        why = "no optimizer holds any weight that gets a gradient: it was made of the parameters of another object."
        suggestion = "make the optimizer of parameters() of this model, after the last line that replaces the model"
    else:
        why = f"no optimizer holds {_some(missing)}, so that nothing ever changes them though they get gradients."
        suggestion = "give the optimizer these weights too, or freeze them with requires_grad_(False)"
    return [Finding(Verdict.OPTIMIZER, (Cause("optimizer.step()", location, why, suggestion),))]


def _some(names: list[str]) -> str:
    return ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")


def find_late_weights(evidence: TrainingEvidence) -> list[Finding]:
    """Find weights that came, or were set free, after the optimizer was made."""
    if not evidence.events.late:
        return []
    location = evidence.first_steps[0].location if evidence.first_steps else CodeLocation()
    shown = _some(list(evidence.events.late.values()))
    why = f"{shown} came, or were set free, after the first pass, and no optimizer holds them: nothing changes them."
    suggestion = "give them to the optimizer with add_param_group, or write new values to the weights that it holds"
    return [Finding(Verdict.OPTIMIZER, (Cause("optimizer.step()", location, why, suggestion),))]


def find_nothing_moved(evidence: TrainingEvidence) -> list[Finding]:
    """Find that there is neither an optimizer nor a line that changes a weight."""
    events = evidence.events
    is_whole = events.failure is None and not events.is_cut_short
    is_for_weights = not events.differentiates_inputs and events.adds_squares is None
    is_training = events.n_backward > _FEW_PASSES and is_whole and is_for_weights
    if events.held or events.steps or events.moved_by_hand or not is_training or not evidence.with_gradient:
        return []
    why = (
        f"nothing changes the weights in {events.n_backward} backward passes: no optimizer holds them, no line writes."
    )
    suggestion = "call step() of an optimizer, or write to the weights: with torch.no_grad(): p -= rate * p.grad"
    return [Finding(Verdict.OPTIMIZER, (Cause("no step", CodeLocation(), why, suggestion),))]


def find_step_without_effect(evidence: TrainingEvidence) -> list[Finding]:
    """Find that steps leave the weights as they are, or are never taken."""
    lost = find_gradient_lost(evidence)
    causes = [cause for step in evidence.first_steps if not lost and (cause := _idle(step, evidence)) is not None]
    return [Finding(Verdict.OPTIMIZER, (cause,)) for cause in [*causes, *_never(evidence)]]


def _idle(first: OptimizerStep, evidence: TrainingEvidence) -> Cause | None:
    """Explain an optimizer none of whose steps changes anything; a rate that only begins at 0 is a usual warm-up."""
    steps = [step for step in evidence.events.steps if step.optimizer == first.optimizer and step.n_given]
    if not steps:
        return None
    last, changing = steps[-1], [step for step in steps if step.n_changed]
    if changing and (last.n_changed or last.learning_rate != 0):
        return None
    if changing:
        why = f"{last.name}.step() changes weights at first, and then no more: its learning rate is 0 from then on."
        return Cause("optimizer.step()", last.location, why, "let the scheduler end above 0, or later")
    why = f"{last.name}.step() leaves all {last.n_given} weights with a gradient as they are"
    if last.learning_rate == 0:
        why, suggestion = f"{why}: its learning rate is 0.", "give the optimizer a learning rate above 0"
    else:
        why = f"{why}: the change is below what their precision can hold."
        suggestion = "keep the weights in float32 and use torch.autocast for bfloat16, or raise the learning rate"
    return Cause("optimizer.step()", last.location, why, suggestion)


def _never(evidence: TrainingEvidence) -> list[Cause]:
    """Find weights with a gradient whose optimizer takes no step though all others, if there are any, took two."""
    events = evidence.events
    stepping = {step.optimizer for step in events.steps}
    is_waiting = events.moved_by_hand or events.n_skipped or events.n_backward < 2 or events.is_cut_short
    if is_waiting or events.failure is not None:
        return []
    moved = frozenset().union(*(held for key, held in events.held.items() if key in stepping))
    held = frozenset().union(*events.held.values()) - moved
    names = [name for name, weight in evidence.with_gradient.items() if id(weight) in held]
    if not names:
        return []
    shown = names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    why = f"an optimizer holds {shown}, but takes no step in {events.n_backward} backward passes."
    return [Cause("no optimizer.step()", CodeLocation(), why, "call optimizer.step() after loss.backward()")]


_LEAST_STEPS = 3


def find_rebuilt_optimizer(evidence: TrainingEvidence) -> list[Finding]:
    """Find a line at which optimizers of the same weights take one step each, and none goes on from another's state.

    One for each epoch takes more steps; where the weights too are put back for every step, that is on purpose.
    """
    steps, restored = evidence.events.steps, evidence.events.overwritten.keys()
    n_steps = Counter(step.optimizer for step in steps)
    single = [step for step in steps if step.begins_state and n_steps[step.optimizer] == 1]
    alike = Counter((step.name, step.location, step.held) for step in single if step.held.isdisjoint(restored))
    suggestion = "make the optimizer once, before the loop; a scheduler changes its learning rate"
    return [
        Finding(Verdict.OPTIMIZER, (Cause("optimizer.step()", location, _why_rebuilt(name, n), suggestion),))
        for (name, location, _), n in alike.items()
        if n >= _LEAST_STEPS
    ]


def _why_rebuilt(name: str, n: int) -> str:
    return f"a new {name} takes each of {n} steps: what it keeps from one to the next, such as momentum, is lost."
