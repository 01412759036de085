"""OK, NONDIFFERENTIABLE, NOT CHECKED, NOISY, WRONG, SUBSTITUTED: the verdict of finite differences."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict, first_line, unique_causes
from deconv_cli.gradients.finite_differences import Outcome, describe_factor, is_one_factor
from deconv_cli.gradients.tracing.code_location import CodeLocation, location_of_backward, location_of_function
from deconv_cli.gradients.tracing.forward_trace import InPlaceWrite


def find_compared(evidence: Evidence, name: str) -> Finding:
    """Give the verdict of finite differences on any parameter, or say why there is none."""
    found = evidence.comparison(name)
    if name in evidence.double.minima:
        return Finding(
            Verdict.OK, detail="the gradient is zero at a minimum: the loss changes with the square of a step"
        )
    if found is not None and found.outcome is Outcome.AGREES:
        return Finding(Verdict.OK)
    if found is not None and found.outcome is Outcome.KINK:
        detail = "the slopes on the two sides differ, and the value of autograd lies between them"
        return Finding(Verdict.NONDIFFERENTIABLE, detail=detail)
    error = evidence.double.backward.error
    if error is not None:
        reason = f"backward does not run in float64 ({type(error).__name__}: “{first_line(error)}”)"
    elif found is None:
        reason = f"the budget of {evidence.budget:g} s was spent; give a longer one, or fewer samples"
    elif evidence.subject.written:
        reason = "forward writes to a parameter, so finite differences cannot judge this gradient"
    elif abs(found.autograd - found.numeric) > 20 * found.error_bar:
        reason = (
            f"autograd ({found.autograd:.6g}) and finite differences ({found.numeric:.6g} ± {found.error_bar:.1g}) "
            "differ along a direction, but no single element is wrong"
        )
    else:
        reason = (
            f"finite differences are not precise enough here (autograd {found.autograd:.4g}, numeric "
            f"{found.numeric:.4g} ± {found.error_bar:.1g})"
        )
    return Finding(Verdict.NOT_CHECKED, detail=reason)


_ROUNDING = 1e-5
"""A smaller relative difference of two runs comes from sums in a changing order."""


def find_noisy(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter whose gradient cannot be checked, since the loss is noisy."""
    is_noisy = evidence.is_noisy and evidence.gradient(name) is not None
    return Finding(Verdict.NOISY, (_cause_of_noise(evidence),)) if is_noisy else None


def find_noisy_model(evidence: Evidence) -> list[Finding]:
    """Find the noise itself."""
    first, second = evidence.losses
    detail = f"two runs with the same seed gave the losses {first:.9g} and {second:.9g}"
    return [Finding(Verdict.NOISY, (_cause_of_noise(evidence),), detail)] if evidence.is_noisy else []


def _cause_of_noise(evidence: Evidence) -> Cause:
    first, second = evidence.losses
    relative = abs(first - second) / max(abs(first), abs(second))
    # Draws around the model, such as the weights of the default loss, have no line.
    drawn = [draw for draw in evidence.forward.random if draw.location.file or draw.location.module]
    operation, location = "state that is kept between runs", CodeLocation()
    reason = "the model keeps state from each run for the next, or draws random numbers outside of torch"
    suggestion = "give the state as an input of forward, and return it; draw with torch's own generator"
    if relative <= _ROUNDING:
        operation, reason = "a non-deterministic operation", "the order of sums changes from run to run"
        suggestion = "torch.use_deterministic_algorithms(True)"
    elif drawn:
        operation, location = drawn[0].label, drawn[0].location
        reason = "the code draws random numbers that the seed does not control"
        suggestion = "draw with torch's own generator, which torch.manual_seed controls"
    return Cause(operation, location, f"the loss differs by {relative:.1g} from run to run: {reason}.", suggestion)


def find_wrong(evidence: Evidence, name: str) -> Finding | None:
    """Find a gradient that differs from finite differences."""
    detail = describe_difference(evidence, name)
    if not detail or evidence.subject.written:  # the old values are back when backward runs, so that this follows
        return None
    functions = dict.fromkeys(call.function for call in evidence.forward.calls)
    causes = [
        *(_cause_of_unseen(write) for write in evidence.double.forward.writes if write.is_unseen),
        *(Cause(f"{function.__name__}.backward", location_of_backward(function), *_OUTSIDE) for function in functions),
    ]
    return Finding(Verdict.WRONG, unique_causes(causes), detail)


_OUTSIDE = (
    "finite differences differ, though this backward is right in isolation: check what it keeps outside of its "
    "context.",
    "keep tensors with ctx.save_for_backward, and compute with torch functions of saved tensors",
)


def _cause_of_unseen(write: InPlaceWrite) -> Cause:
    why = (
        f"{write.operation.label} overwrites a tensor of shape {write.shape} past autograd, so backward may compute "
        "with the new values instead of those of forward."
    )
    return Cause(".data", write.operation.location, why, "make a new tensor instead of writing to this one")


def describe_difference(evidence: Evidence, name: str) -> str:
    """Write both values at the element that shows the difference; empty without a difference."""
    found = evidence.comparison(name)
    if found is None or found.outcome is not Outcome.DIFFERS:
        return ""
    text = (
        f"at {list(found.element or ())} autograd gives {found.autograd:.6g}, finite differences {found.numeric:.6g} ± "
        f"{found.error_bar:.1g}"
    )
    if found.n_tried > 1:
        text += f"; {found.n_wrong} of {found.n_tried} elements tried are wrong"
    if found.ratio is not None and found.n_wrong > 1:
        text += f", {describe_factor(found.ratio, found.ratio_range)}"
    return text


def find_wrong_function(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter whose gradient passes a wrong backward."""
    wrong = [item for item in evidence.wrong_inputs_before(name) if not item.purpose]
    if not wrong or evidence.gradient(name) is None:
        return None
    detail = describe_difference(evidence, name)
    detail = detail or "through the hand-written backward, which was checked separately"
    return Finding(Verdict.WRONG, unique_causes(item.cause for item in wrong), detail)


def find_wrong_function_in_model(evidence: Evidence) -> list[Finding]:
    """Find wrong backwards with no parameter behind them, one finding for each line."""
    wrong = evidence.double.wrong_inputs
    known = {item.cause.location for item in wrong if item.parameters or item.purpose}
    causes = {item.cause.location: item.cause for item in reversed(wrong) if item.cause.location not in known}
    return [Finding(Verdict.WRONG, (cause,), "no parameter reaches this input") for cause in causes.values()]


_MEANT = "nothing, if it is intended"
_NO_JUDGE = "finite differences cannot tell whether the gradient is as intended"


def find_substituted(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter behind a backward that gives another gradient than the derivative on purpose."""
    meant = [item for item in evidence.wrong_inputs_before(name) if item.purpose]
    if not meant or evidence.gradient(name) is None:
        return None
    causes = [
        replace(
            item.cause,
            why=f"{item.cause.operation} replaces the gradient for '{item.name}': {item.purpose}.",
            suggestion=f"{_MEANT}; remove the Function to compare the rest",
        )
        for item in meant
    ]
    return Finding(Verdict.SUBSTITUTED, unique_causes(causes), _NO_JUDGE)


def find_renormed(evidence: Evidence, name: str) -> Finding | None:
    """Find an embedding whose rows forward itself scales back to `max_norm`, unseen by any gradient."""
    module = dict(evidence.subject.model.named_modules()).get(name.rpartition(".")[0])
    is_limited = isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None
    if not is_limited or not evidence.differs(name):
        return None
    why = (
        "max_norm scales rows down before they are read, and autograd does not see it: the gradient belongs to the "
        "scaled rows."
    )
    cause = Cause("max_norm", evidence.module_of(name), why, _MEANT)
    return Finding(Verdict.SUBSTITUTED, (cause,), _NO_JUDGE)


def find_gradient_hook(evidence: Evidence, name: str) -> Finding | None:
    """Find a gradient that differs from finite differences and passes a hook.

    A hook that multiplies the whole gradient by a negative factor or by one above 1 is a mistake. One that changes
    elements by various factors, or takes a part away, is meant: a mask, a limit, a solver for a fixed point.
    """
    detail, found = describe_difference(evidence, name), evidence.comparison(name)
    if not detail or found is None:
        return None
    locations = [location_of_function(hook) or CodeLocation() for hook in evidence.changing_hooks(name)[:1]]
    locations = locations or evidence.double.forward.hooks
    share = found.autograd / found.numeric if found.numeric else 0.0
    is_meant = 0 <= share <= 1 or found.n_wrong < 2 or not is_one_factor(share, found.ratio_range)
    why = "a hook changes the gradient on its way back, so it is not the derivative of the loss."
    suggestion = _MEANT if is_meant else "remove the hook, or accept this finding"
    causes = unique_causes(Cause("a gradient hook", location, why, suggestion) for location in locations)
    if not causes:
        return None
    return Finding(Verdict.SUBSTITUTED, causes, _NO_JUDGE) if is_meant else Finding(Verdict.WRONG, causes, detail)
