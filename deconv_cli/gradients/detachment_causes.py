"""Why an operation detaches, and what to write instead."""

from __future__ import annotations

import ast
import contextlib

from deconv_cli.gradients.automatic_fix import (
    STAY_IN_TORCH,
    line_without_detachment,
    line_without_wrapper,
    write_piecewise_loss,
)
from deconv_cli.gradients.findings import Cause
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.tracing.forward_trace import Detachment
from deconv_cli.gradients.tracing.operations import COMPARISONS, DETACHING, INDEX_MAKERS, OUTSIDE_USES, WRAPPING

NOT_ENOUGH = (
    "write this line, and what follows, with torch functions that carry gradients; taking out what detaches was tried, "
    "and fails alone"
)
_WITHOUT_RSAMPLE = (
    "this draw has no .rsample(): weigh its log_prob with what it earns, or use F.gumbel_softmax for classes"
)
_INSTEAD_OF = {
    ".sample(": _WITHOUT_RSAMPLE,
    "state_dict(": "take the weights themselves, dict(self.named_parameters()): a state_dict holds detached tensors",
    "copy(": "use what is copied itself: a copy has weights of its own, which nothing trains",
}
_SMOOTH = "replace it by a smooth function, such as torch.sigmoid((x - limit) / width)"


def instead_of_call(code: str) -> str | None:
    """Write what to do instead of what a line calls; None where that is not known."""
    return next((text for call, text in _INSTEAD_OF.items() if call in code), None)


def explain_detachment(found: Detachment) -> Cause:
    """Explain an operation that gradients do not leave, and write what to use instead."""
    name, label = found.name, found.label
    if name in WRAPPING:
        return _wrapping(found)
    why = f"gradients enter {label} and do not leave it."
    suggestion = "replace it by an operation that torch can differentiate"
    if name in DETACHING:
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
        suggestion = _instead_of_comparing(found.location.code)
    elif name in INDEX_MAKERS and not found.by_mode:
        why = f"{label} gives whole numbers, which do not change under small changes of its input: no gradient."
        suggestion = _instead_of_index(name, found.location.code)
    elif label.startswith("the cast to"):
        why = f"{label} rounds to whole numbers, which carry no gradient."
        suggestion = "stay with floating point; cast only what serves as an index"
    elif found.by_mode:
        why = f"{label} runs while gradients are switched off (torch.no_grad or torch.inference_mode)."
        if found.is_draw:
            why = ".sample() draws numbers without a gradient, so that none reaches the parameters of the distribution."
        label, suggestion = ".sample()" if found.is_draw else "no_grad", _switching_on(found)
    elif name.endswith(".apply") and found.is_hidden:
        why = f"forward of {name.removesuffix('.apply')} reads a parameter that is not among its arguments."
        suggestion = "hand the parameter to apply, and return its gradient from backward"
    elif name.endswith(".apply"):
        why = f"{label.removesuffix('(...)')} gives an output that autograd cannot follow back to this input."
        suggestion = "return a gradient for every input from backward"
    return Cause(label, _where(found), why, suggestion)


def _where(found: Detachment) -> CodeLocation:
    """Find the line to change: where gradients are switched off around a call, that line and not one of the model's."""
    switch = found.switch
    is_outside = switch is not None and switch.code.startswith("with ") and switch.function != found.location.function
    return switch if switch is not None and is_outside else found.location


def _instead_of_comparing(code: str) -> str:
    in_loss = f"{write_piecewise_loss(code)}; the value of the loss changes"
    is_loss = any(part in code for part in ("mean(", "sum(", "len(", "for ", "&"))
    return in_loss if is_loss else f"{_SMOOTH}; in a loss {in_loss}"


def _instead_of_index(name: str, code: str) -> str:
    """Write what to use instead of an operation that gives whole numbers."""
    if name.startswith("arg") and "==" in code:
        return "use F.cross_entropy(scores, classes) as the loss, and report how many are right beside it"
    if name.startswith("arg"):
        return "use torch.softmax(x, dim) and a weighted sum"
    return _WITHOUT_RSAMPLE if name == "multinomial" else _SMOOTH


def _switching_on(found: Detachment) -> str:
    """Write how gradients are switched on again, by how they were switched off."""
    line = found.switch.code if found.switch is not None else ""
    if ".sample(" in found.location.code:
        line = found.location.code.replace(".sample(", ".rsample(")
        return f"draw with .rsample(), which carries gradients, or use log_prob: {line}"
    if found.by_library:
        return "the library that this line calls switches gradients off itself; use another function of it"
    if line.startswith("with ") or found.switch is None:
        what = "this line" if _where(found) is found.location else "the call"
        return f"move {what} out of the torch.no_grad() block; what is not to be trained is better frozen"
    if "set_grad_enabled" in line or "no_grad" in line:
        return (
            f"call torch.set_grad_enabled(True) after line {found.switch.line}, which switches gradients off for good"
        )
    return "take the decorator torch.no_grad() off the function around this line"


def _wrapping(found: Detachment) -> Cause:
    """Explain a tensor that is made anew of the values of another."""
    is_loss = found.n_elements == 1 and not found.location.module
    why = (
        f"{found.label} makes a new leaf that only has the value of {'the loss' if is_loss else 'the tensor'}: "
        "backward() ends at it, and every parameter before it gets no gradient."
    )
    name = _wrapped_name(found.location) if is_loss else None
    suggestion = f"return {name}" if name else line_without_wrapper(found.location.code) or "use the tensor itself"
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
    known = STAY_IN_TORCH if ".numpy()" in location.code else instead_of_call(location.code)
    return known or "use the tensor itself"
