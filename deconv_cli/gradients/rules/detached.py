"""DETACHED, PARTLY DETACHED: the value reaches the loss, and its gradient does not, wholly or on some paths."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from deconv_cli.gradients.detachment_causes import NOT_ENOUGH, explain_detachment, instead_of_call
from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict, unique_causes
from deconv_cli.gradients.reruns import uses_outside
from deconv_cli.gradients.rules.wrong import describe_difference
from deconv_cli.gradients.tracing.forward_trace import Detachment, Operation
from deconv_cli.gradients.tracing.operations import WRAPPING

_DELIBERATE = WRAPPING | {"data"}


def find_detached(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter without a gradient whose value reaches the loss."""
    if evidence.gradient(name) is not None:
        return None
    forward, bit = evidence.forward, evidence.forward.bit(name)
    if evidence.is_reached(name) and evidence.backward is not None:
        origins = evidence.origins_of(name, lambda magnitude: magnitude.is_zero)
        return Finding(Verdict.DETACHED, unique_causes(returning_none(origin, evidence) for origin in origins))
    if forward.flow.sources & bit:
        lost = sorted(index for index, lost in forward.flow.detachments.items() if lost & bit)
        return Finding(Verdict.DETACHED, _causes(evidence, (forward.log.detachments[index] for index in lost)))
    return None


def find_used_outside_torch(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter without a gradient on which the loss depends by way of plain values.

    A loss that autograd reaches nothing from is made of what left torch, even if it is constant on these data.
    """
    forward, bit = evidence.forward, evidence.forward.bit(name)
    uses = uses_outside(forward, bit)
    if evidence.gradient(name) is not None or not uses:
        return None
    if forward.reached and name not in evidence.moved_from_outside:
        return None
    cutting = [use for use in uses if use.reached & bit]
    detachments = [forward.log.detachments[index] for use in uses for index in use.before]
    before = [found for found in detachments if found.lost & bit]
    return Finding(Verdict.DETACHED, _causes(evidence, cutting or before or uses))


def find_partly_detached(evidence: Evidence, name: str) -> Finding | None:
    """Find a gradient that differs from finite differences, and an operation that keeps a part of it."""
    difference = describe_difference(evidence, name)
    if evidence.double is None or not difference:
        return None
    forward = evidence.double.forward
    bit = forward.bit(name)
    detachments = [forward.log.detachments[index] for index in sorted(forward.flow.detachments)]
    # What is detached on purpose is held constant in finite differences, so it makes no difference.
    losing = [found for found in detachments if found.lost & bit and not found.is_deliberate]
    deliberate = [found for found in losing if found.name in _DELIBERATE]
    # A value that only a Python condition reads is the usual way to choose a branch.
    returned = getattr(evidence.model, "returned", None)  # of a recorded pass, which lines a constant was made of
    uses = (use for use in uses_outside(forward, bit) if use.name != "__bool__")
    outside = [use for use in uses if returned is None or str(use.location) in returned]
    if not losing and not outside:
        return None
    detail = f"detached on one of several paths, so the gradient is only a part: {difference}"
    return Finding(Verdict.DETACHED, _causes(evidence, deliberate or losing or outside), detail)


def _causes(evidence: Evidence, detachments: Iterable[Detachment]) -> tuple[Cause, ...]:
    """Explain operations that gradients do not leave, and write what to use instead, unless it was tried in vain."""
    causes = unique_causes(explain_detachment(found) for found in detachments)
    return tuple(_tried(cause) if str(cause.location) in evidence.failing_fixes else cause for cause in causes)


def _tried(cause: Cause) -> Cause:
    """Take back a suggestion that was tried in vain."""
    return replace(cause, suggestion=instead_of_call(cause.location.code) or NOT_ENOUGH)


def returning_none(operation: Operation, evidence: Evidence) -> Cause:
    """Explain a backward that gives nothing for an input, on its own line where it is the user's."""
    name = operation.bare_name.removesuffix(".apply")
    missing = (item.location for item in evidence.wrong_inputs if item.is_missing and item.function == name)
    location = next(missing, operation.location)
    why = f"the backward of {name} returns None for an input that has a gradient."
    return Cause(f"{name}.backward", location, why, "return a gradient for every input from backward")


_MAX_LINES = 3
_DISCRETE = ("multinomial", "bernoulli", "poisson")


def find_detached_on_purpose(evidence: Evidence) -> list[Finding]:
    """Find `.detach()` and `no_grad` in the user's own code, a finding for each line."""
    forward = evidence.forward
    trained = sum(forward.bit(name) for name in evidence.magnitudes)
    lines: dict[str, Detachment] = {}
    for index in sorted(forward.flow.detachments):
        found = forward.log.detachments[index]
        is_plain = found.is_deliberate and not found.by_library and found.location.file
        if is_plain and found.lost & trained:
            lines.setdefault(str(found.location), found)
    return [*_drawn(evidence, trained), *(_intended(evidence, found) for found in list(lines.values())[:_MAX_LINES])]


def _drawn(evidence: Evidence, trained: int) -> list[Finding]:
    """Find continuous draws without a gradient that a layer goes on with, and that no log_prob is taken of."""
    log, flow = evidence.forward.log, evidence.forward.flow
    is_discrete = {str(draw.location): draw.bare_name in _DISCRETE for draw in log.random}
    cuts = (log.detachments[index] for index in sorted(flow.detachments) if index in log.read_on)
    lines = {
        str(found.location): explain_detachment(found)
        for found in cuts
        if found.is_draw and found.lost & trained and not is_discrete.get(str(found.location), True)
    }
    return [] if log.takes_likelihood else [Finding(Verdict.DETACHED, (cause,)) for cause in lines.values()]


def _intended(evidence: Evidence, found: Detachment) -> Finding:
    names = [name for name in evidence.magnitudes if evidence.forward.bit(name) & found.lost]
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    label = "no_grad" if found.by_mode else found.label
    why = (
        f"{names[0]}{others} reach the loss by this line too, but get gradients on other ways only; the value here "
        "was held constant in finite differences."
    )
    suggestion = "nothing, if that is meant, as for a target or a straight-through gradient; else take it out"
    return Finding(Verdict.PARTLY_DETACHED, (Cause(label, found.location, why, suggestion),))
