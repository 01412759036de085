"""UNREGISTERED, NOTHING TRAINS: a weight that the model does not know, or no parameter that is free to move."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.stray_weights import Unregistered
from deconv_cli.gradients.tracing.code_location import CodeLocation

_EXPLANATIONS = {
    "member": (
        "is a tensor that requires a gradient but no nn.Parameter, so parameters() leaves it out",
        "wrap it: nn.Parameter(torch...)",
    ),
    "buffer": (
        "is a buffer, which is saved with the model, but parameters() leaves it out",
        "make it a parameter: self.name = nn.Parameter(torch...)",
    ),
    "derived": (
        "is what an operation made of an nn.Parameter, and not the Parameter itself, so parameters() leaves it out",
        "keep the Parameter itself in self, made of the tensor after the operation: nn.Parameter(tensor.view(...))",
    ),
    "container": (
        "is a plain Python container, whose modules and parameters parameters() leaves out",
        "use nn.ModuleList, nn.ModuleDict, nn.ParameterList or nn.ParameterDict",
    ),
    "unknown": (
        "are parameters that no module of the model keeps, such as those of a layer that forward makes anew each time",
        "make them in __init__ and keep them in self",
    ),
}


def find_unregistered(evidence: Evidence) -> list[Finding]:
    """Find such weights, once for each member of a module."""
    return [Finding(Verdict.UNREGISTERED, (_cause(found),)) for found in evidence.unregistered]


def _cause(found: Unregistered) -> Cause:
    fact, suggestion = _EXPLANATIONS[found.kind]
    why = f"{found.owner or 'what this line reads'} {fact}: an optimizer made of parameters() never moves it."
    return Cause(found.owner or "a weight", found.location, why, suggestion)


def find_nothing_trains(evidence: Evidence) -> list[Finding]:
    """Find that no parameter requires a gradient."""
    if any(parameter.requires_grad and parameter.numel() for parameter in evidence.parameters.values()):
        return []
    if any(parameter.requires_grad for parameter in evidence.parameters.values()):
        why = "no parameter that requires a gradient has any elements, so that no step changes anything."
        cause = Cause("no elements", CodeLocation(), why, "give the layers a width above 0")
        return [Finding(Verdict.NOTHING_TRAINS, (cause,))]
    why = f"requires_grad is off for all {len(evidence.parameters)} parameters, so that no step changes anything."
    suggestion = "call requires_grad_() on what is to be trained, after what is to stay was frozen"
    return [Finding(Verdict.NOTHING_TRAINS, (Cause("requires_grad_(False)", CodeLocation(), why, suggestion),))]
