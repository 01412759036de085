"""Weights, tensors, losses and samples that the code uses wrongly or not at all.

FROZEN, UNUSED, NOT-LOSS, NOT REACHED, UNREGISTERED, NOTHING TRAINS, LOSS INPUT, BATCH-LEAK, IN-PLACE, OVERWRITTEN.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from deconv_cli.gradients.evidence import Evidence, loses_writes
from deconv_cli.gradients.findings import Cause, Finding, Verdict, first_line, unique_causes
from deconv_cli.gradients.nested_tensors import leaves_of, tensors_in
from deconv_cli.gradients.tracing.backward_trace import nodes_below
from deconv_cli.gradients.tracing.code_location import (
    CodeLocation,
    library_class_around,
    location_of_backward,
    location_of_error,
)
from deconv_cli.gradients.tracing.forward_trace import InPlaceWrite


def find_frozen(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter whose `requires_grad` is off, or without elements."""
    parameter = evidence.parameters[name]
    return None if parameter.requires_grad and parameter.numel() else Finding(Verdict.FROZEN)


def find_unused(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter that no operation of forward reads."""
    if evidence.gradient(name) is not None or evidence.forward.used & evidence.forward.bit(name):
        return None
    library = library_class_around(evidence.subject.model, evidence.parameters[name])
    why = "no operation of forward reads this parameter."
    suggestion = "use it in forward, or remove it, or pass find_unused_parameters=True to DistributedDataParallel"
    if library:
        why = f"{library}, a class of an installed library, owns this parameter and does not read it in this call."
        suggestion = "nothing; DistributedDataParallel needs find_unused_parameters=True for it"
    cause = Cause("never used", evidence.module_of(name), why, suggestion)
    return Finding(Verdict.UNUSED, (cause,), is_excused=bool(library))


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
    leaves = [leaf for leaf in leaves_of(value) if leaf is not value]
    held = [p for leaf in leaves for p in (leaf.parameters() if isinstance(leaf, nn.Module) else [leaf])]
    return [
        (leaf, "container") for leaf in held if isinstance(leaf, torch.Tensor) and leaf.is_leaf and leaf.requires_grad
    ]


def describe_plain_container(model: nn.Module) -> str:
    """Describe the first member of a module that is a plain container of weights; empty without one."""
    owners = [owner for owner, kind in hidden_weights(model).values() if kind == "container"]
    fact, suggestion = _UNREGISTERED["container"]
    return f"{owners[0]} {fact}; {suggestion}" if owners else ""


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
        while not forward.graph.operation_of(reader).location.file and reader in backward.consumers:
            reader = backward.consumers[reader][0][0]
        fact, suggestion = _UNREGISTERED[kind]
        why = f"{owner or 'what this line reads'} {fact}: an optimizer made of parameters() never moves it."
        cause = Cause(owner or "a weight", forward.graph.operation_of(reader).location, why, suggestion)
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


def find_loss_input(evidence: Evidence) -> list[Finding]:
    """Find misused losses, one finding for each line."""
    findings = {}
    for call in evidence.forward.loss_calls:
        first, second = call.shapes
        why, suggestion = (text.format(name=call.name, first=first, second=second) for text in call.misuse.value)
        cause = Cause(f"{call.name.strip('_')}(...)", call.location, why, suggestion)
        findings[str(call.location), call.misuse] = Finding(Verdict.LOSS_INPUT, (cause,))
    return list(findings.values())


_OVER_TIME = ("lstm", "gru", "rnn_tanh", "rnn_relu", "multi_head_attention_forward", "transformer_encoder_layer_fwd")
_SHAPES = ("reshape", "view", "flatten", "unflatten", "t", "transpose", "permute", "movedim", "swapaxes", "T", "mT")


def find_batch_leak(evidence: Evidence) -> list[Finding]:
    """Find that samples mix in evaluation mode, and the first operation that mixes them."""
    axis, mixer = evidence.batch.axis, evidence.batch.mixer
    if mixer is None:
        return []
    label = mixer.label
    why = f"{label} mixes the samples along axis {axis}: each output then depends on the whole batch."
    suggestion = f"apply {label} only to the axes within a sample, for instance dim=-1 instead of dim={axis}"
    if mixer.bare_name in _SHAPES:
        suggestion = f"leave axis {axis} as it is in {label}, as x.reshape(len(x), -1) does"
    elif mixer.bare_name in _OVER_TIME:
        why = f"{label} reads axis {axis} as time and the next one as samples, unless batch_first is set."
        suggestion = "make the layer with batch_first=True"
    detail = f"with sample 0 replaced, the outputs of other samples along axis {axis} change (in evaluation mode)"
    return [Finding(Verdict.BATCH_LEAK, (Cause(label, mixer.location, why, suggestion),), detail)]


_NOT_IN_FORWARD = (
    "write to weights before forward and not in it; to share a weight, use one Parameter: b.weight = a.weight"
)
_TO_A_COPY = "write to a copy: x = x.clone() before this line, or use torch.where"


def find_in_place(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter whose gradient needs a tensor that was overwritten."""
    if not evidence.parameters[name].requires_grad or not evidence.is_reached(name):
        return None
    error = evidence.backward.error
    writes = _writes_at_fault(error, evidence.forward.writes)
    if error is None or writes is None:
        return None
    return Finding(
        Verdict.IN_PLACE, unique_causes(_cause_of_write(evidence, write) for write in writes), first_line(error)
    )


def _cause_of_write(evidence: Evidence, write: InPlaceWrite) -> Cause:
    label, location = write.operation.label, write.operation.location
    why = f"{label} overwrites a tensor of shape {write.shape} that backward still needs."
    if not location.file:
        suggestion = "make the layer with inplace=False"
    elif location in evidence.forward.parameter_writes.values():
        suggestion = _NOT_IN_FORWARD
    else:
        suggestion = _line_out_of_place(location.code) or _TO_A_COPY
    return Cause(label, location, why, suggestion)


_MESSAGE = re.compile(
    r"\[torch\.\w+ \[([\d, ]*)\]\](?:, which is output \d+ of (\w+))?, is at version (\d+); expected version (\d+)"
)
"""Torch's message on an overwritten tensor: its shape, the node that made it, and its counts of writes."""


def _writes_at_fault(error: Exception | None, writes: Sequence[InPlaceWrite]) -> list[InPlaceWrite] | None:
    """List the writes that fit torch's message on an overwritten tensor; None for another error."""
    found = _MESSAGE.search(str(error)) if error is not None else None
    if found is None:
        return None
    shape = tuple(int(size) for size in found[1].split(",") if size.strip())
    node, actual, expected = found[2], int(found[3]), int(found[4])
    fitting = [write for write in writes if write.shape == shape and expected < write.version <= actual]
    exact = [write for write in fitting if node is None or write.node == node]
    return exact or fitting or list(writes)


def _line_out_of_place(source: str) -> str | None:
    """Write a line that makes a new tensor instead; None where that is not certain."""
    augmented = re.fullmatch(r"([\w.\[\]]+)\s*([-+*/@])=\s*(.+)", source)
    if augmented and "[" not in augmented[1]:
        return f"{augmented[1]} = {augmented[1]} {augmented[2]} {augmented[3]}"
    method = re.fullmatch(r"(?:([\w.]+)\s*=\s*)?([\w.]+)\.(\w+)_\((.*)\)", source)
    if method:
        return f"{method[1] or method[2]} = {method[2]}.{method[3]}({method[4]})"
    return None


def find_failing_backward(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter behind a backward that raises an error."""
    error = evidence.backward.error
    if error is None or not evidence.parameters[name].requires_grad or not evidence.is_reached(name):
        return None
    return Finding(Verdict.WRONG, (_cause_of_error(evidence, error),))


def _cause_of_error(evidence: Evidence, error: Exception) -> Cause:
    """Name the line that raised the error, or the Function that torch names in its message."""
    message, location, forward = first_line(error), location_of_error(error), evidence.forward
    why = f"backward raises {type(error).__name__}: {message}."
    if location is not None and location.file:
        return Cause("backward", location, why, "correct this line of the hand-written backward, or of the hook")
    for call in forward.calls:
        if f"{call.function.__name__}Backward" in message:
            suggestion = "return one gradient for each input of forward, each of the shape of its input"
            name = f"{call.function.__name__}.backward"
            return Cause(name, location_of_backward(call.function), why, suggestion)
    for node, operation in forward.graph.operations.items():
        if type(node).__name__ == "NotImplemented":
            suggestion = "replace it by an operation that torch can differentiate"
            return Cause(operation.label, operation.location, why, suggestion)
    return Cause("backward", CodeLocation(), why, "look at the message of torch")


def find_overwritten(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter that every pass of forward resets."""
    is_written = name in evidence.subject.written and evidence.parameters[name].requires_grad
    if not is_written or not loses_writes(evidence.subject, name):
        return None
    location = evidence.forward.parameter_writes[evidence.forward.bit(name)]
    why = "forward resets this parameter to the same values, so an optimizer's step is lost."
    suggestion = "set it once in __init__; keep values that each pass computes in a local variable"
    return Finding(Verdict.OVERWRITTEN, (Cause("a write to a parameter", location, why, suggestion),))
