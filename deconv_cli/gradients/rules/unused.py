"""FROZEN, UNUSED, NOT-LOSS, NOT REACHED, UNREGISTERED, NOTHING TRAINS: weights that take no part in training."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.tracing.code_location import CodeLocation, library_class_around


def find_frozen(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter whose `requires_grad` is off."""
    return None if evidence.parameters[name].requires_grad else Finding(Verdict.FROZEN)


def find_empty(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter without elements, as in a layer of width 0."""
    if evidence.parameters[name].numel():
        return None
    why = "it has no elements, so there is nothing to train."
    suggestion = "nothing, if a width of 0 is meant here"
    return Finding(Verdict.ZERO_BY_CONSTRUCTION, (Cause("no elements", evidence.module_of(name), why, suggestion),))


def find_unused(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter that no operation of forward reads."""
    if evidence.gradient(name) is not None or evidence.forward.log.used & evidence.forward.bit(name):
        return None
    library = library_class_around(evidence.model, evidence.parameters[name])
    if library:
        why = f"{library}, a class of an installed library, owns this parameter and does not read it in this call."
        suggestion = "nothing; DistributedDataParallel needs find_unused_parameters=True for it"
        return Finding(Verdict.NOT_REACHED, (Cause("not used here", evidence.module_of(name), why, suggestion),))
    why = "no operation of forward reads this parameter."
    suggestion = "use it in forward, or remove it, or pass find_unused_parameters=True to DistributedDataParallel"
    return Finding(Verdict.UNUSED, (Cause("never used", evidence.module_of(name), why, suggestion),))


def find_not_in_loss(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter that forward reads, but whose value does not reach the loss."""
    if evidence.gradient(name) is not None:
        return None
    location = evidence.forward.log.last_use.get(evidence.forward.bit(name)) or CodeLocation()
    why = "forward uses this parameter here, but its value does not reach the loss."
    suggestion = "return what this line computes and add it to the loss, or remove the line"
    return Finding(Verdict.NOT_LOSS, (Cause("used, but not in the loss", location, why, suggestion),))


def find_not_reached(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter that gets no gradient from this batch, but gets one from other data."""
    if name not in evidence.reached_by_others or not any(m.largest for m in evidence.backward.magnitudes.values()):
        return None
    return Finding(Verdict.NOT_REACHED, (used_by_other_data(name),))


def used_by_other_data(name: str) -> Cause:
    """Explain a parameter that this batch does not use."""
    why = "whether this parameter is used depends on the data or on chance: other data give it a gradient."
    suggestion = "nothing; DistributedDataParallel needs find_unused_parameters=True for it"
    return Cause("not reached by this batch", CodeLocation(module=name.rpartition(".")[0]), why, suggestion)


_UNREGISTERED = {
    "member": (
        "is a tensor that requires a gradient but no nn.Parameter, so it is missing from parameters()",
        "wrap it: nn.Parameter(torch...)",
    ),
    "buffer": (
        "is a buffer, which is saved with the model but missing from parameters()",
        "make it a parameter: self.name = nn.Parameter(torch...)",
    ),
    "derived": (
        "is what an operation made of an nn.Parameter, not the Parameter itself, so it is missing from parameters()",
        "keep the Parameter itself in self, made of the tensor after the operation: nn.Parameter(tensor.view(...))",
    ),
    "container": (
        "is a plain Python container, whose content is missing from parameters()",
        "use nn.ModuleList, nn.ModuleDict, nn.ParameterList or nn.ParameterDict",
    ),
    "unknown": (
        "are parameters that no module of the model keeps, such as those of a layer that forward creates in each pass",
        "create them in __init__ and keep them in self",
    ),
}


def find_unregistered(evidence: Evidence) -> list[Finding]:
    """Find weights that the model does not register, one finding for each member of a module."""
    findings = []
    for owner, kind, location in evidence.unregistered:
        fact, suggestion = _UNREGISTERED[kind]
        why = f"{owner or 'what this line reads'} {fact}: an optimizer made of parameters() never moves it."
        findings.append(Finding(Verdict.UNREGISTERED, (Cause(owner or "a weight", location, why, suggestion),)))
    return findings


def find_nothing_trains(evidence: Evidence) -> list[Finding]:
    """Find that no parameter requires a gradient."""
    trainable = [parameter for parameter in evidence.parameters.values() if parameter.requires_grad]
    if any(parameter.numel() for parameter in trainable):
        return []
    if trainable:
        operation, suggestion = "no elements", "give the layers a width above 0"
        why = "no parameter that requires a gradient has any elements, so no step changes anything."
    else:
        operation = "requires_grad_(False)"
        suggestion = "call requires_grad_() on the parameters to train, after freezing the others"
        why = f"requires_grad is off for all {len(evidence.parameters)} parameters, so no step changes anything."
    return [Finding(Verdict.NOTHING_TRAINS, (Cause(operation, CodeLocation(), why, suggestion),))]
