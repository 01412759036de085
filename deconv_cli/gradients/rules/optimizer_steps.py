"""OPTIMIZER, GRADIENT LOST, CLIPPING, ACCUMULATED, FAILS: what a training script does with its gradients."""

from __future__ import annotations

import math
from collections import Counter

from deconv_cli.gradients.findings import Cause, Finding, Verdict, unique_causes
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.training.training_events import (
    Failure,
    IdleReason,
    OptimizerStep,
    TrainingEvents,
    TrainingEvidence,
)

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


_TWICE = (
    "call backward() once on the sum of the losses, or detach what both go through in one of them: net(fake.detach())"
)

_WRITTEN = "run forward again after the step: what it computed before belongs to the weights of before"

DETACH_CARRIED = (
    "detach what one turn of the loop hands on to the next, such as a state or a running sum: state = state.detach()"
)

_SWITCHED_OFF = (
    "before forward runs, switch gradients on again, torch.set_grad_enabled(True), and let weights that are to be "
    "trained require them, requires_grad_()"
)

_SUGGESTIONS = {
    "backward through the graph a second time": _TWICE,
    "modified by an inplace operation": _WRITTEN,
    "does not require grad and does not have a grad_fn": _SWITCHED_OFF,
    "grad can be implicitly created only for scalar outputs": "reduce the loss to one number: loss.mean().backward()",
}

_WITHOUT_GRADIENT = (Verdict.UNUSED, Verdict.NOT_LOSS, Verdict.DETACHED)


def find_failing_script(evidence: TrainingEvidence) -> list[Finding]:
    """Find that the script itself went no further."""
    failure = evidence.events.failure
    if failure is None or _is_explained(failure, evidence):
        return []
    if failure.reads_missing_gradient:
        return [_of_missing_gradient(failure, evidence)]
    why = f"the script ends here, in its training: {failure.kind}: {failure.message}."
    known = (suggestion for words, suggestion in _SUGGESTIONS.items() if words in failure.message)
    suggestion = next(known, "correct this line")
    is_carried = evidence.events.carried is not None and suggestion in (_TWICE, _WRITTEN)
    cause = Cause("an error", failure.location, why, DETACH_CARRIED if is_carried else suggestion)
    return [Finding(Verdict.FAILS, (cause,))]


def _is_explained(failure: Failure, evidence: TrainingEvidence) -> bool:
    """Tell whether the error follows from what was found of the passes."""
    findings = [*(found for found in evidence.report.parameters if found.is_fault), *evidence.report.general]
    verdicts, message = {found.verdict for found in findings}, failure.message
    is_without = not verdicts.isdisjoint(_WITHOUT_GRADIENT)
    return (
        any(message in cause.why for found in findings for cause in found.causes)
        or (is_without and (failure.reads_missing_gradient or "does not require grad" in message))
        or (Verdict.IN_PLACE in verdicts and "modified by an inplace operation" in message)
        or (Verdict.UNREGISTERED in verdicts and "backward through the graph a second time" in message)
    )


def _of_missing_gradient(failure: Failure, evidence: TrainingEvidence) -> Finding:
    """Explain why a `.grad` that the script reads is None."""
    if failure.cleared_at is not None:
        why = "the gradients are cleared here, after backward() and before the script reads them: .grad is None."
        cause = Cause("zero_grad()", failure.cleared_at, why, "call zero_grad() before backward()")
        return Finding(Verdict.GRADIENT_LOST, (cause,))
    frozen = [found.name for found in evidence.report.parameters if found.verdict == Verdict.FROZEN]
    why = "this line reads .grad of a weight that no backward pass reaches, so it is None"
    suggestion = "read .grad of the model that backward() went through, and leave out weights whose .grad is None"
    if frozen:
        why = f"this line reads .grad of a weight that gets none, so it is None: requires_grad is off for {frozen[0]}"
        suggestion = "leave out weights that are frozen, or let them require gradients, requires_grad_()"
    return Finding(Verdict.FAILS, (Cause("an error", failure.location, f"{why}.", suggestion),))
