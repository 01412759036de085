"""ZERO, ZERO BY CONSTRUCTION: the gradient is zero in every element, or the loss cannot depend on the parameter."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict, unique_causes
from deconv_cli.gradients.rules.detached import returning_none
from deconv_cli.gradients.tensors_in import norm_of
from deconv_cli.gradients.tracing.backward_trace import BackwardTrace
from deconv_cli.gradients.tracing.code_location import CodeLocation, location_of_function
from deconv_cli.gradients.tracing.forward_trace import Operation
from deconv_cli.gradients.tracing.loss_calls import Misuse
from deconv_cli.gradients.tracing.operations import STEPS
from deconv_cli.gradients.zero_reasons import SMOOTH_UNITS, reason_for_zero

_SMOOTH = "replace the step by a smooth function; a straight-through gradient was tried, and does not arrive either"
_NORMALIZING = ("BatchNorm", "LayerNorm", "GroupNorm", "Softmax", "ScaledDot")
_MAX_NODES = 200


def find_zero(evidence: Evidence, name: str) -> Finding | None:
    """Find a gradient that is zero, and the operations at which it becomes so."""
    if evidence.backward is None or name not in evidence.magnitudes or not evidence.magnitudes[name].is_zero:
        return None
    if evidence.double is not None and name in evidence.double.minima:
        return None
    origins = evidence.origins_of(name, lambda magnitude: magnitude.is_zero)
    hooks = _hooks_that_zero(evidence, name, origins)
    if hooks:
        return Finding(Verdict.ZERO, unique_causes(map(_of_hook, hooks)))
    single = {str(call.location) for call in evidence.forward.log.loss_calls if call.misuse is Misuse.ONE_CLASS}
    causes = unique_causes(_of_one_class(op) if str(op.location) in single else _cause(evidence, op) for op in origins)
    causes = causes or unique_causes(map(_of_cancellation, evidence.canceling_before(name)))
    return Finding(Verdict.ZERO, causes, _describe_underflow(evidence, name))


def _hooks_that_zero(evidence: Evidence, name: str, origins: list[Operation]) -> list[CodeLocation]:
    """List the hooks that make a gradient zero: those of modules, or of tensors on the way where no operation does."""
    if origins and all(operation.bare_name == "BackwardHookFunction.apply" for operation in origins):
        hooks = [hook for module in evidence.model.modules() for hook in module._backward_hooks.values()]
        return [location_of_function(hook) or origins[0].location for hook in hooks]
    own, log = evidence.forward.bit(name), evidence.forward.log
    return [] if origins else [hook.location for hook in log.hooks if hook.changes and hook.parameters & own]


def _of_hook(location: CodeLocation) -> Cause:
    why = "a hook gives zero for the gradient that passes it, so that nothing gets past it."
    return Cause("a gradient hook", location, why, "remove the hook, or let it return None: the gradient as it is")


def _of_cancellation(operation: Operation) -> Cause:
    why = f"gradients come by several ways through {operation.bare_name} and add up to zero: the loss stays the same."
    suggestion = "hold one of the ways constant, as the old one in a ratio of new to old: torch.exp(new - old.detach())"
    return Cause(operation.label, operation.location, why, suggestion)


def _of_one_class(operation: Operation) -> Cause:
    why = "there is one class only, whose probability is 1 whatever comes in: the gradient is zero."
    suggestion = "use sigmoid, or F.binary_cross_entropy_with_logits for a loss; softmax is for two classes or more"
    return Cause(operation.label, operation.location, why, suggestion)


def _describe_underflow(evidence: Evidence, name: str) -> str:
    gradient = evidence.double.backward.gradients.get(name) if evidence.double is not None else None
    norm = norm_of(gradient) if gradient is not None else 0.0
    return f"in float64 the gradient is not zero but of norm {norm:.2g}: it underflows" if norm else ""


def _cause(evidence: Evidence, operation: Operation) -> Cause:
    name = operation.bare_name.removesuffix(".apply")
    if any(item.is_missing and item.function == name for item in evidence.wrong_inputs):
        return returning_none(operation, evidence)
    why, suggestion = reason_for_zero(operation.bare_name)
    if operation.bare_name in STEPS and str(operation.location) in evidence.failing_fixes:
        suggestion = _SMOOTH
    return Cause(operation.label, operation.location, why, suggestion)


def find_left_out_of_derivative(evidence: Evidence, name: str) -> Finding | None:
    """Tell a parameter that drops out of a derivative from one that moves it, smoothly or in steps.

    Moved smoothly it is DETACHED, moved in steps its gradient is ZERO, not moved it is ZERO BY CONSTRUCTION.
    """
    response = evidence.responses.get(name)
    if response is None:
        return None
    location = evidence.forward.log.shifted[evidence.forward.bit(name)]
    if response.is_smooth:
        verdict = Verdict.DETACHED
        why = "the derivative depends on this parameter, but a hand-written backward on the way gives plain values."
        suggestion = "write that backward with torch functions of saved tensors"
    elif response.is_moved:
        verdict, suggestion = Verdict.ZERO, SMOOTH_UNITS
        why = "the loss holds only a derivative, and that changes with this parameter in steps: its slope is zero."
    else:
        verdict = Verdict.ZERO_BY_CONSTRUCTION
        why = "the loss holds only a derivative, from which this parameter drops out: it shifts what is differentiated."
        suggestion = "nothing, unless what is differentiated belongs in the loss as well"
    return Finding(verdict, (Cause("torch.autograd.grad(...)", location, why, suggestion),))


def find_zero_by_construction(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter that what follows takes away again."""
    double = evidence.double
    if double is None or name not in double.constants:
        return None
    follower = _follower(evidence, name, double.backward)
    why = f"{follower} takes away whatever this parameter adds, so the loss does not depend on it."
    suggestion = "nothing; it does no harm, and a layer without it (bias=False) gives the same"
    return Finding(Verdict.ZERO_BY_CONSTRUCTION, (Cause(follower, evidence.module_of(name), why, suggestion),))


def _follower(evidence: Evidence, name: str, backward: BackwardTrace) -> str:
    """Name the nearest normalization behind a parameter."""
    waiting = [node for node, _ in backward.readers_of(evidence.parameters[name])]
    for node in waiting:
        kind = type(node).__name__
        if any(word in kind for word in _NORMALIZING):
            return kind.removesuffix("0").removesuffix("Backward").removeprefix("Native")
        if len(waiting) < _MAX_NODES:
            waiting += [reader for reader, _ in backward.consumers.get(node, []) if reader not in waiting]
    return "what follows"
