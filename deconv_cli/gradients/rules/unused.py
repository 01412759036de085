"""FROZEN, UNUSED, NOT-LOSS, NOT REACHED, UNREGISTERED, NOTHING TRAINS: weights that take no part in training."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn

from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.nested_tensors import is_plain, leaves_of, tensors_in
from deconv_cli.gradients.tracing.backward_trace import nodes_below
from deconv_cli.gradients.tracing.code_location import CodeLocation, library_class_around
from deconv_cli.vocabulary import counted


def find_frozen(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter whose `requires_grad` is off, or without elements."""
    parameter = evidence.parameters[name]
    return None if parameter.requires_grad and parameter.numel() else Finding(Verdict.FROZEN)


def find_unused(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter that no operation of forward reads."""
    if evidence.gradient(name) is not None or evidence.forward.used & evidence.forward.bit(name):
        return None
    library = library_class_around(evidence.subject.model, evidence.parameters[name])
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
    location = evidence.forward.last_use.get(evidence.forward.bit(name)) or CodeLocation()
    why = "forward uses this parameter here, but its value does not reach the loss."
    suggestion = "return what this line computes and add it to the loss, or remove the line"
    return Finding(Verdict.NOT_LOSS, (Cause("used, but not in the loss", location, why, suggestion),))


def find_not_reached(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter that gets no gradient from this batch, but gets one from other data, or may get one."""
    magnitudes = evidence.backward.magnitudes
    if not any(found.largest for found in magnitudes.values()):
        return None
    why = "whether this parameter is used depends on the data or on chance: other data may give it a gradient."
    if name not in evidence.reached_by_others:
        if name not in magnitudes or not magnitudes[name].is_zero or not evidence.is_left_out_by_data(name):
            return None
        why = "an index or a mask of forward chooses no value of this parameter in this batch; other data may."
    suggestion = "nothing; DistributedDataParallel needs find_unused_parameters=True for it"
    cause = Cause("not reached by this batch", evidence.module_of(name), why, suggestion)
    return Finding(Verdict.NOT_REACHED, (cause,))


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
        "is the result of an operation on an nn.Parameter, not the Parameter itself, so it is missing from "
        "parameters()",
        "keep the Parameter itself in self, made of the tensor after the operation: nn.Parameter(tensor.view(...))",
    ),
    "container": (
        "is a plain Python container, so its content is missing from parameters()",
        "use nn.ModuleList, nn.ModuleDict, nn.ParameterList or nn.ParameterDict",
    ),
    "unknown": (
        "are parameters that no module of the model stores, such as those of a layer that forward creates in each pass",
        "create them in __init__ and keep them in self",
    ),
}


_MEMBERS_OF_TORCH = ("_parameters", "_buffers", "_modules")


def hidden_weights(model: nn.Module) -> dict[int, tuple[str, str]]:
    """Find the weights that modules keep and do not register: by id, the member as code writes it, and its kind."""
    registered = (weight for module in model.modules() for weight in module._parameters.values())
    known = {id(weight) for weight in (*registered, *model.parameters())}
    found: dict[int, tuple[str, str]] = {}
    for name, module in model.named_modules():
        members = {**vars(module), **module._buffers}
        for member, value in members.items():
            if member in _MEMBERS_OF_TORCH or member.endswith("_hooks"):
                continue
            for leaf, kind in _weights_in(value, is_buffer=member in module._buffers):
                if id(leaf) not in known:
                    found[id(leaf)] = f"self.{member}" + (f" of '{name}'" if name else ""), kind
    return found


def _weights_in(value: Any, *, is_buffer: bool) -> list[tuple[torch.Tensor, str]]:  # noqa: ANN401  any member
    if isinstance(value, torch.Tensor) and value.grad_fn is not None:
        return [(node.variable, "derived") for node in nodes_below([value.grad_fn]) if hasattr(node, "variable")]
    if isinstance(value, torch.Tensor):
        return [(value, "buffer" if is_buffer else "member")] if value.requires_grad else []
    leaves = list(leaves_of(value)) if is_plain(value) else []
    held = [p for leaf in leaves for p in (leaf.parameters() if isinstance(leaf, nn.Module) else [leaf])]
    return [
        (leaf, "container") for leaf in held if isinstance(leaf, torch.Tensor) and leaf.is_leaf and leaf.requires_grad
    ]


def describe_plain_containers(model: nn.Module) -> list[str]:
    """Describe the members of modules that are plain containers of weights, a sentence each without a final stop."""
    owners = Counter(owner for owner, kind in hidden_weights(model).values() if kind == "container")
    return [
        f"{owner} is a plain Python container of {counted(n, 'weight')}, which the model does not know, so they are "
        f"neither checked nor trained; {_UNREGISTERED['container'][1]}"
        for owner, n in owners.items()
    ]


def find_unregistered(evidence: Evidence) -> list[Finding]:
    """Find the leaves of the loss's graph that are neither parameters of the model or the loss, nor inputs.

    A tensor that the model itself differentiates by counts as an input, as the points of a physics-informed network.
    """
    subject, forward, backward = evidence.subject, evidence.forward, evidence.backward
    known = [*subject.parameters.values(), *_parameters_of(subject.loss), *forward.differentiated_by, *forward.wrapped]
    known += [
        weight for module in subject.model.modules() for weight in module._parameters.values() if weight is not None
    ]
    known += tensors_in((subject.arguments, subject.keywords, subject.target))
    ids, owners = set(map(id, known)), hidden_weights(subject.model)
    findings: dict[str, Finding] = {}
    for key, node in backward.leaf_of.items():
        owner, kind = owners.get(key, ("", "unknown"))
        # Forward lets a plain tensor require a gradient to differentiate by its inputs.
        if key in ids or not (owner or isinstance(node.variable, nn.Parameter)):
            continue
        reader = node
        while not forward.graph.location_of(reader).file and reader in backward.consumers:
            reader = backward.consumers[reader][0][0]
        fact, suggestion = _UNREGISTERED[kind]
        why = f"{owner or 'what this line reads'} {fact}: an optimizer made of parameters() never moves it."
        cause = Cause(owner or "a weight", forward.graph.location_of(reader), why, suggestion)
        findings.setdefault(owner or str(cause.location), Finding(Verdict.UNREGISTERED, (cause,)))
    return list(findings.values())


def _parameters_of(loss: Any) -> list[nn.Parameter]:  # noqa: ANN401  any callable
    """List the parameters of a loss function that is a module, or a closure over one."""
    cells = [cell.cell_contents for cell in getattr(loss, "__closure__", None) or ()]
    modules = [found for found in (loss, *cells) if isinstance(found, nn.Module)]
    return [parameter for module in modules for parameter in module.parameters()]


def find_nothing_trains(evidence: Evidence) -> list[Finding]:
    """Find that no parameter requires a gradient."""
    if any(parameter.requires_grad for parameter in evidence.parameters.values()):
        return []
    why = f"requires_grad is off for all {len(evidence.parameters)} parameters, so no step changes them."
    suggestion = "call requires_grad_() on the parameters to train, after freezing the others"
    return [Finding(Verdict.NOTHING_TRAINS, (Cause("requires_grad_(False)", CodeLocation(), why, suggestion),))]
