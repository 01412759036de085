"""DETACHED: the parameter's value reaches the loss, but an operation cuts its gradient off, wholly or on some paths."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterable
from dataclasses import replace

from deconv_cli.gradients.automatic_fix import STAY_IN_TORCH, line_without_detachment, write_piecewise_loss
from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict, unique_causes
from deconv_cli.gradients.reruns import uses_outside
from deconv_cli.gradients.rules.wrong import describe_difference
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.tracing.forward_trace import Detachment, Operation
from deconv_cli.gradients.tracing.operations import COMPARISONS, INDEX_MAKERS, OUTSIDE_USES

_DELIBERATE = ("data", "Variable", "nn.Parameter", "torch.tensor", "torch.as_tensor")
_WRAPPERS = ("Variable", "nn.Parameter", "torch.tensor", "torch.as_tensor")
_NOT_ENOUGH = "write this line with torch functions that carry gradients; taking out what detaches was tried, and fails"
_WITHOUT_RSAMPLE = (
    "this draw has no .rsample(): weigh its log_prob with what it earns, or use F.gumbel_softmax for classes"
)
_SMOOTH = "replace it by a smooth function, such as torch.sigmoid((x - limit) / width)"


def find_detached(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter without a gradient whose value reaches the loss."""
    if evidence.gradient(name) is not None:
        return None
    forward, bit = evidence.forward, evidence.forward.bit(name)
    if evidence.is_reached(name) and evidence.backward is not None:
        origins = evidence.origins_of(name, lambda magnitude: magnitude.is_zero)
        return Finding(Verdict.DETACHED, unique_causes(_returning_none(origin, evidence) for origin in origins))
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
    detachments = [forward.log.detachments[index] for use in uses for index in use.before]
    before = [found for found in detachments if found.lost & bit]
    return Finding(Verdict.DETACHED, _causes(evidence, before or uses))


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
    outside = [use for use in uses_outside(forward, bit) if use.name != "__bool__"]
    if not losing and not outside:
        return None
    detail = f"detached on one of several paths, so the gradient is only a part: {difference}"
    return Finding(Verdict.DETACHED, _causes(evidence, deliberate or losing or outside), detail)


def _causes(evidence: Evidence, detachments: Iterable[Detachment]) -> tuple[Cause, ...]:
    """Explain operations that gradients do not leave, and write what to use instead, unless it was tried in vain."""
    causes = unique_causes(_cause(found) for found in detachments)
    return tuple(_tried(cause) if str(cause.location) in evidence.failing_fixes else cause for cause in causes)


def _tried(cause: Cause) -> Cause:
    """Take back a suggestion that was tried in vain."""
    return replace(cause, suggestion=_WITHOUT_RSAMPLE if ".sample(" in cause.location.code else _NOT_ENOUGH)


def _returning_none(operation: Operation, evidence: Evidence) -> Cause:
    """Explain a backward that gives nothing for an input, on its own line where it is the user's."""
    name = operation.bare_name.removesuffix(".apply")
    missing = (item.location for item in evidence.wrong_inputs if item.is_missing and item.function == name)
    location = next(missing, operation.location)
    why = f"the backward of {name} returns None for an input that has a gradient."
    return Cause(f"{name}.backward", location, why, "return a gradient for every input from backward")


def _cause(found: Detachment) -> Cause:
    name, label = found.name, found.label
    if name in _WRAPPERS:
        return _wrapping(found)
    why = f"gradients enter {label} and do not leave it."
    suggestion = "replace it by an operation that torch can differentiate"
    if name in ("detach", "detach_"):
        why = ".detach() gives a tensor that autograd knows nothing of, so no gradient passes this line."
        suggestion = _without_detachment(found.location)
    elif name == "data":
        why = ".data reads the values past autograd, so no gradient passes this line."
        suggestion = _without_detachment(found.location)
    elif name in OUTSIDE_USES:
        why = f"{label} turns the tensor into a plain value outside of autograd, which can carry no gradient."
        suggestion = line_without_detachment(found.location.code) or STAY_IN_TORCH
    elif name == "grad":
        why = f"{label} without create_graph=True gives plain values, so no gradient passes this line."
        suggestion = "pass create_graph=True"
    elif name == "CheckpointFunction.apply":
        label = "checkpoint(...)"
        why = "a reentrant checkpoint gives gradients only where one of its inputs requires a gradient, and none does."
        suggestion = "pass use_reentrant=False"
    elif name in COMPARISONS:
        why = f"{label} gives True or False, which does not change under small changes of its input: no gradient."
        suggestion = f"{write_piecewise_loss(found.location.code)}; the value of the loss changes"
    elif name in INDEX_MAKERS and not found.by_mode:
        why = f"{label} gives whole numbers, which do not change under small changes of its input: no gradient."
        suggestion = "use torch.softmax(x, dim) and a weighted sum" if name.startswith("arg") else _SMOOTH
    elif label.startswith("the cast to"):
        why = f"{label} rounds to whole numbers, which carry no gradient."
        suggestion = "stay with floating point; cast only what serves as an index"
    elif found.by_mode:
        why = f"{label} runs while gradients are switched off (torch.no_grad or torch.inference_mode)."
        label, suggestion = "no_grad", _switching_on(found)
    elif name.endswith(".apply") and found.is_hidden:
        why = f"forward of {name.removesuffix('.apply')} reads a parameter that is not among its arguments."
        suggestion = "hand the parameter to apply, and return its gradient from backward"
    elif name.endswith(".apply"):
        why = f"{label.removesuffix('(...)')} gives an output that autograd cannot follow back to this input."
        suggestion = "return a gradient for every input from backward"
    return Cause(label, found.location, why, suggestion)


def _switching_on(found: Detachment) -> str:
    """Write how gradients are switched on again, by how they were switched off."""
    line = found.switch.code if found.switch is not None else ""
    if ".sample(" in found.location.code:
        return f"draw with .rsample(), which carries gradients, or use log_prob: {_with_rsample(found.location.code)}"
    if found.by_library:
        return "the library that this line calls switches gradients off itself; use another function of it"
    if line.startswith("with ") or found.switch is None:
        return "move this line out of the torch.no_grad() block"
    if "set_grad_enabled" in line or "no_grad" in line:
        return (
            f"call torch.set_grad_enabled(True) after line {found.switch.line}, which switches gradients off for good"
        )
    return "take the decorator torch.no_grad() off the function around this line"


def _with_rsample(line: str) -> str:
    return line.replace(".sample(", ".rsample(")


def _wrapping(found: Detachment) -> Cause:
    """Explain a tensor that is made anew of the values of another."""
    is_loss = found.n_elements == 1 and not found.location.module
    why = (
        f"{found.label} makes a new leaf that only has the value of {'the loss' if is_loss else 'the tensor'}: "
        "backward() ends at it, and every parameter before it gets no gradient."
    )
    suggestion = "torch.stack([...]) keeps the graph" if found.name.startswith("torch.") else "use the tensor itself"
    if is_loss:
        suggestion = f"return {_wrapped_name(found.location) or 'loss'}"
    return Cause(found.label, found.location, why, suggestion)


def _wrapped_name(location: CodeLocation) -> str | None:
    """Find the name that a line wraps, as in `Variable(loss, requires_grad=True)`."""
    with contextlib.suppress(SyntaxError, ValueError):
        for node in ast.walk(ast.parse(location.code)):
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Name):
                continue
            if ast.unparse(node.func).rpartition(".")[2] in ("Variable", "Parameter", "tensor", "as_tensor"):
                return node.args[0].id
    return None


def _without_detachment(location: CodeLocation) -> str:
    """Write the line without the part that detaches."""
    found = line_without_detachment(location.code)
    if found is not None:
        return found
    # A piece of a longer statement, or the head of a block, is changed by its look.
    parts = [part for part in (".detach()", ".data", ".item()", ".tolist()", ".numpy()") if part in location.code]
    if parts in ([".detach()"], [".data"]) and location.code.count(parts[0]) == 1:
        return location.code.replace(parts[0], "")
    return STAY_IN_TORCH if ".numpy()" in location.code else "use the tensor itself"
