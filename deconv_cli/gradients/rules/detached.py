"""DETACHED: the value reaches the loss, but its gradient does not, or not on all paths. PARTLY DETACHED: on purpose."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence

from deconv_cli.gradients.evidence import Evidence, loss_changes_with
from deconv_cli.gradients.findings import Cause, Finding, Verdict, unique_causes
from deconv_cli.gradients.rules.finite_difference_verdict import describe_difference
from deconv_cli.gradients.tracing.code_location import CodeLocation, Operation
from deconv_cli.gradients.tracing.forward_trace import Detachment
from deconv_cli.gradients.tracing.operations import COMPARISONS, DETACHING, INDEX_MAKERS, OUTSIDE_USES, WRAPPING
from deconv_cli.vocabulary import name_some

_DELIBERATE = WRAPPING | {"data"}


def find_detached(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter without a gradient whose value reaches the loss."""
    if evidence.gradient(name) is not None:
        return None
    forward, bit = evidence.forward, evidence.forward.bit(name)
    if evidence.is_reached(name):
        origins = evidence.origins_of(name, lambda magnitude: magnitude.is_zero)
        return Finding(Verdict.DETACHED, unique_causes(returning_none(origin, evidence) for origin in origins))
    if forward.flow.sources & bit:
        lost = sorted(index for index, lost in forward.flow.detachments.items() if lost & bit)
        return Finding(Verdict.DETACHED, _causes(forward.detachments[index] for index in lost))
    return None


def find_used_outside_torch(evidence: Evidence, name: str) -> Finding | None:
    """Find a parameter without a gradient that the loss depends on through plain values."""
    forward, bit = evidence.forward, evidence.forward.bit(name)
    uses = [use for use in forward.outside_uses if use.lost & bit]
    if evidence.gradient(name) is not None or not uses or (forward.reached and not _is_in_loss(evidence, uses)):
        return None
    cutting = [use for use in uses if use.reached & bit]
    detachments = [forward.detachments[index] for use in uses for index in use.before]
    before = [found for found in detachments if found.lost & bit]
    return Finding(Verdict.DETACHED, _causes(cutting or before or uses))


def _is_in_loss(evidence: Evidence, uses: Sequence[Detachment]) -> bool:
    """Return whether the loss depends on one of these plain values, by the parameters without a gradient there.

    A recorded pass does not compute with plain values again; it knows the lines whose plain values enter its loss.
    """
    returned = getattr(evidence.subject.model, "returned", None)
    if returned is not None:
        return not returned.isdisjoint(str(use.location) for use in uses)
    names = [name for name in evidence.subject.trainable if evidence.gradient(name) is None]
    names = [name for name in names if any(evidence.forward.bit(name) & use.lost for use in uses)]
    return any(loss_changes_with(evidence.subject, name) for name in names)


def find_partly_detached(evidence: Evidence, name: str) -> Finding | None:
    """Find a gradient that differs from finite differences, and an operation that cuts off a part of it."""
    difference = describe_difference(evidence, name)
    if not difference or name in evidence.subject.written:  # a projection changes the weight, and not its gradient
        return None
    forward = evidence.double.forward
    bit = forward.bit(name)
    detachments = [forward.detachments[index] for index in sorted(forward.flow.detachments)]
    # Finite differences hold values constant that are detached on purpose, so these make no difference.
    losing = [found for found in detachments if found.lost & bit and not found.is_deliberate]
    deliberate = [found for found in losing if found.name in _DELIBERATE]
    # A value that only a Python condition reads is the usual way to choose a branch.
    uses = [use for use in forward.outside_uses if use.lost & bit and use.name != "__bool__"]
    # The lines whose plain values a recorded pass uses as constants.
    returned = getattr(evidence.subject.model, "returned", None)
    outside = [use for use in uses if returned is None or str(use.location) in returned]
    if not losing and not outside:
        return None
    detail = f"detached on one of several paths, so the gradient is only a part: {difference}"
    return Finding(Verdict.DETACHED, _causes(deliberate or losing or outside), detail)


def _causes(detachments: Iterable[Detachment]) -> tuple[Cause, ...]:
    return unique_causes(explain_detachment(found) for found in detachments)


def returning_none(operation: Operation, evidence: Evidence) -> Cause:
    """Explain a backward that returns None for an input, on its own line where it is the user's."""
    name = operation.bare_name.removesuffix(".apply")
    missing = (
        item.cause.location for item in evidence.double.wrong_inputs if item.is_missing and item.function == name
    )
    location = next(missing, operation.location)
    why = f"the backward of {name} returns None for an input that has a gradient."
    return Cause(f"{name}.backward", location, why, "return a gradient for every input from backward")


_DISCRETE = ("multinomial", "bernoulli", "poisson")


def find_detached_on_purpose(evidence: Evidence) -> list[Finding]:
    """Find draws without a gradient, one finding per line, and `.detach()` and `no_grad` in the user's own code."""
    forward, magnitudes = evidence.forward, evidence.backward.magnitudes
    trained = sum(map(forward.bit, magnitudes))
    is_discrete = {str(draw.location): draw.bare_name in _DISCRETE for draw in forward.random}
    draws: dict[str, Cause] = {}
    plain: dict[str, Detachment] = {}
    for index in sorted(forward.flow.detachments):
        found, line = forward.detachments[index], str(forward.detachments[index].location)
        if not found.lost & trained:
            continue
        # A continuous draw that a layer reads on, and that no log_prob weighs.
        if (
            found.is_draw
            and index in forward.read_on
            and not is_discrete.get(line, True)
            and not forward.takes_likelihood
        ):
            draws[line] = explain_detachment(found)
        if found.is_deliberate and not found.by_library and found.location.file:
            plain.setdefault(line, found)
    findings = [Finding(Verdict.DETACHED, (cause,)) for cause in draws.values()]
    if not plain:
        return findings
    first, *others = plain.values()
    names = [name for name in magnitudes if any(forward.bit(name) & found.lost for found in plain.values())]
    lines = " and ".join(["this line", *(str(found.location) for found in others[:2])])
    why = (
        f"{name_some(names, 1)} reach the loss through {lines} too, but get gradients only by other ways; finite "
        "differences hold the values there constant."
    )
    suggestion = "nothing, if it is intended, as for a target or a straight-through gradient; otherwise remove it"
    cause = Cause("no_grad" if first.by_mode else first.label, first.location, why, suggestion)
    return [*findings, Finding(Verdict.PARTLY_DETACHED, (cause,))]


_WITHOUT_RSAMPLE = (
    "this distribution has no .rsample(): multiply its log_prob by the reward of the draw, or use F.gumbel_softmax "
    "for classes"
)

_SMOOTH = "replace it by a smooth function, such as torch.sigmoid((x - limit) / width)"


_IN_LOSS = (
    "replace the count by a penalty with a slope, such as torch.where((x > low) & (x < high), torch.minimum(x - low, "
    "high - x), 0.0).mean(); the value of the loss changes"
)


def explain_detachment(found: Detachment) -> Cause:
    """Explain an operation that gradients do not leave, and write what to use instead."""
    name, label = found.name, found.label
    if name in WRAPPING:
        return _wrapping(found)
    why = f"gradients enter {label} and do not leave it."
    suggestion = "replace it by an operation that torch can differentiate"
    if name in DETACHING:
        why = ".detach() cuts the tensor off from the operations that made it, so no gradient passes this line."
        suggestion = _without_detachment(found.location.code)
    elif name == "data":
        why = ".data bypasses autograd, so no gradient passes this line."
        suggestion = _without_detachment(found.location.code)
    elif name in OUTSIDE_USES:
        why = f"{label} turns the tensor into a plain value, which carries no gradient."
        suggestion = line_with_gradient(found.location.code) or _STAY_IN_TORCH
    elif name == "grad":
        why = f"{label} without create_graph=True gives plain values, so no gradient passes this line."
        suggestion = "pass create_graph=True"
    elif name == "CheckpointFunction.apply":
        label = "checkpoint(...)"
        why = "a reentrant checkpoint passes gradients on only if one of its inputs requires a gradient, and none does."
        suggestion = "pass use_reentrant=False"
    elif name in COMPARISONS:
        why = f"{label} returns True or False; small changes of its input do not change that, so there is no gradient."
        is_loss = any(part in found.location.code for part in ("mean(", "sum(", "len(", "for ", "&"))
        suggestion = _IN_LOSS if is_loss else f"{_SMOOTH}; in a loss {_IN_LOSS}"
    elif name in INDEX_MAKERS and not found.by_mode:
        why = f"{label} returns whole numbers; small changes of its input do not change them, so there is no gradient."
        suggestion = _instead_of_index(name, found.location.code)
    elif label.startswith("the cast to"):
        why = f"{label} rounds to whole numbers, which carry no gradient."
        suggestion = "keep floating-point numbers; cast only indices"
    elif found.by_mode:
        why = f"{label} runs while gradients are switched off (torch.no_grad or torch.inference_mode)."
        if found.is_draw:
            why = ".sample() draws numbers without a gradient, so none reaches the parameters of the distribution."
        label, suggestion = ".sample()" if found.is_draw else "no_grad", _switching_on(found)
    elif name.endswith(".apply") and found.is_hidden:
        why = f"forward of {name.removesuffix('.apply')} reads a parameter that is not among its arguments."
        suggestion = "pass the parameter to apply, and return its gradient from backward"
    elif name.endswith(".apply"):
        why = f"{label.removesuffix('(...)')} returns an output that autograd cannot trace back to this input."
        suggestion = "return a gradient for every input from backward"
    return Cause(label, _where(found), why, suggestion)


def _where(found: Detachment) -> CodeLocation:
    switch = found.switch
    is_outside = switch is not None and switch.code.startswith("with ") and switch.function != found.location.function
    return switch if switch is not None and is_outside else found.location


def _instead_of_index(name: str, code: str) -> str:
    """Write what to use instead of an operation that returns whole numbers."""
    if name.startswith("arg") and "==" in code:
        return "use F.cross_entropy(scores, classes) as the loss, and report the accuracy separately"
    if name.startswith("arg"):
        return "use torch.softmax(x, dim) and a weighted sum"
    return _WITHOUT_RSAMPLE if name == "multinomial" else _SMOOTH


def _switching_on(found: Detachment) -> str:
    line = found.switch.code if found.switch is not None else ""
    if ".sample(" in found.location.code:
        line = found.location.code.replace(".sample(", ".rsample(")
        return (
            f"draw with .rsample(), which carries gradients: {line}; if the distribution has none, multiply its "
            "log_prob by the reward of the draw, or use F.gumbel_softmax for classes"
        )
    if found.by_library:
        return "the called library switches gradients off; use another of its functions"
    if line.startswith("with ") or found.switch is None:
        what = "this line" if _where(found) is found.location else "the call"
        return f"move {what} out of the torch.no_grad() block; freeze weights that should not train instead"
    if "set_grad_enabled" in line or "no_grad" in line:
        return (
            f"call torch.set_grad_enabled(True) after line {found.switch.line}, which switches gradients off for good"
        )
    return "remove the decorator torch.no_grad() from the function around this line"


def _wrapping(found: Detachment) -> Cause:
    """Explain a tensor made of the values of another one."""
    is_loss = "loss" in found.location.code.lower()
    why = (
        f"{found.label} makes a new tensor that has only the value of {'the loss' if is_loss else 'the old one'}: "
        "backward() stops there, and no parameter before it gets a gradient."
    )
    return Cause(found.label, found.location, why, line_with_gradient(found.location.code) or "use the tensor itself")


def _without_detachment(code: str) -> str:
    """Write a line without its detachment, or say what to use instead."""
    if "copy(" in code:
        return "use the original: a copy has its own weights, which nothing trains"
    if "state_dict(" in code:
        return "use the parameters, dict(self.named_parameters()): a state_dict holds detached tensors"
    return line_with_gradient(code) or (_STAY_IN_TORCH if ".numpy()" in code else "use the tensor itself")


LEAVE_OUT = "leave this line out"
"""The suggestion for a line that only detaches."""

_STAY_IN_TORCH = "keep the tensor, and compute with torch functions"
_DETACHING = ("detach", "detach_", "item", "tolist")
_NUMPY = re.compile(r"\b(np|numpy|from_numpy)\b")
_WRAPPERS = ("float", "tensor", "as_tensor", "Variable", "Parameter")
"""Functions that make a new tensor or number of their argument."""


def line_with_gradient(source: str) -> str | None:
    """Write a line without its one `.detach()`, `.data`, `.item()`, `float(x)`, `torch.tensor(x)` or `Variable(x)`.

    Returns:
        A line that carries gradients, `LEAVE_OUT` for a line that only detaches, or None where that is not certain.
    """
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError):
        return None
    remover = _Remover()
    lines = [ast.unparse(remover.visit(statement)) for statement in body]
    if len(lines) != 1 or "\n" in lines[0] or remover.n_removed != 1 or _NUMPY.search(source):
        return None
    if isinstance(body[0], ast.Expr):  # or a part of a longer statement
        return LEAVE_OUT if source.endswith(".detach_()") else None
    target, _, value = lines[0].partition(" = ")
    return LEAVE_OUT if target == value else lines[0]


class _Remover(ast.NodeTransformer):
    """Removes detachments and wrappers, and counts them; those inside of one another count as one."""

    def __init__(self) -> None:
        self.n_removed = 0

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Replace `x.detach()` and `float(x)` by `x`, and a wrapped list of tensors by their stack."""
        before = self.n_removed
        self.generic_visit(node)
        function, name = node.func, ast.unparse(node.func).rpartition(".")[2]
        if isinstance(function, ast.Attribute) and name in _DETACHING and not node.args:
            self.n_removed = before + 1
            return function.value
        inside = node.args[0] if node.args and name in _WRAPPERS else None
        if inside is None or not any(isinstance(part, ast.Name) for part in ast.walk(inside)):
            return node
        self.n_removed = before + 1
        is_list = isinstance(inside, ast.List | ast.ListComp | ast.Tuple)
        return ast.Call(ast.Name("torch.stack", ast.Load()), [inside], []) if is_list else inside

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """Replace `x.data` by `x`."""
        before = self.n_removed
        self.generic_visit(node)
        if node.attr != "data":
            return node
        self.n_removed = before + 1
        return node.value
