"""FROZEN, UNUSED, NOT-LOSS, NOT REACHED, and what has no elements: parameters that take no part in training."""

from __future__ import annotations

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.tracing.code_location import CodeLocation, library_class_around


def find_frozen(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter whose `requires_grad` is off."""
    return None if evidence.parameters[name].requires_grad else Finding(Verdict.FROZEN)


def find_empty(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter without elements, as of a layer of width 0: there is nothing that could be trained."""
    if evidence.parameters[name].numel():
        return None
    why = "it has no elements, so that there is nothing to train."
    suggestion = "nothing, if a width of 0 is meant here"
    return Finding(Verdict.ZERO_BY_CONSTRUCTION, (Cause("no elements", evidence.module_of(name), why, suggestion),))


def find_unused(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter without a gradient that no operation of forward reads."""
    if evidence.gradient(name) is not None or evidence.forward.log.used & evidence.forward.bit(name):
        return None
    keeper = library_class_around(evidence.model, evidence.parameters[name])
    if keeper:
        why = f"{keeper}, of an installed library, keeps this parameter, and this way of calling it does not read it."
        suggestion = "nothing; DistributedDataParallel needs find_unused_parameters=True for it"
        return Finding(Verdict.NOT_REACHED, (Cause("not used here", evidence.module_of(name), why, suggestion),))
    why = "no operation of forward reads this parameter."
    suggestion = "use it in forward, or remove it, or pass find_unused_parameters=True to DistributedDataParallel"
    return Finding(Verdict.UNUSED, (Cause("never used", evidence.module_of(name), why, suggestion),))


def find_not_in_loss(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter without a gradient that is used, but whose value does not reach the loss."""
    if evidence.gradient(name) is not None:
        return None
    location = evidence.forward.log.last_use.get(evidence.forward.bit(name)) or CodeLocation()
    why = "forward uses this parameter here, but its value does not reach the loss."
    suggestion = "return what this line computes and add it to the loss, or leave the line out"
    return Finding(Verdict.NOT_LOSS, (Cause("used, but not in the loss", location, why, suggestion),))


def find_not_reached(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter that gets no gradient from this batch and gets one from another, where others get one here."""
    is_any_given = any(magnitude.largest for magnitude in evidence.magnitudes.values())
    if name not in evidence.reached_by_others or not is_any_given:
        return None
    return Finding(Verdict.NOT_REACHED, (used_by_other_data(name),))


def used_by_other_data(name: str) -> Cause:
    """Explain a parameter that this batch does not use."""
    why = "whether this parameter is used depends on the data or on chance: others than these give it a gradient."
    suggestion = "nothing; DistributedDataParallel needs find_unused_parameters=True for it"
    return Cause("not reached by this batch", CodeLocation(module=name.rpartition(".")[0]), why, suggestion)
