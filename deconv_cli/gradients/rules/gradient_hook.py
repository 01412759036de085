"""WRONG: a hook changes the gradient on its way."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.finding import Cause, Finding, Verdict, unique_causes
from deconv_cli.gradients.rules.wrong import describe_difference
from deconv_cli.gradients.tracing.code_location import CodeLocation, location_of_function


def find_gradient_hook(evidence: Evidence, name: str) -> Finding | None:
    """Find a gradient that differs from finite differences, and passes a hook on the parameter or on the way."""
    detail = describe_difference(evidence, name)
    if evidence.double is None or not detail:
        return None
    forward = evidence.double.forward
    locations = _hooks_on(evidence, name)[:1] or [
        hook.location for hook in forward.log.hooks if hook.changes and hook.parameters & forward.bit(name)
    ]
    if not locations:
        return None
    return Finding(Verdict.WRONG, unique_causes(map(_cause, locations)), detail)


def _hooks_on(evidence: Evidence, name: str) -> list[CodeLocation]:
    """List where the hooks on a parameter and on the modules that own it are written."""
    parameter = evidence.parameters[name]
    hooks = list((parameter._backward_hooks or {}).values())
    for module in evidence.model.modules():
        if any(own is parameter for own in module._parameters.values()):
            hooks += list(module._backward_hooks.values())
    return [location_of_function(hook) or CodeLocation() for hook in hooks]


def _cause(location: CodeLocation) -> Cause:
    why = "a hook changes the gradient on its way, so it is no longer the derivative of the loss."
    return Cause("a gradient hook", location, why, "remove the hook, or accept this finding")
