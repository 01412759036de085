"""For each kind of cause: why it harms, in one sentence, and what to write instead, in one line."""

from __future__ import annotations

import ast
import contextlib

from deconv_cli.gradients.operations import COMPARISONS, INDEX_MAKERS, NUMBERS, STEPS
from deconv_cli.gradients.tracing import Cut
from deconv_cli.gradients.verdicts import Cause, Place

_WRAPPERS = ("Variable", "nn.Parameter", "torch.tensor", "torch.as_tensor")


def cause_of_cut(cut: Cut, *, is_loss: bool) -> Cause:
    """Explain a cut.

    Args:
        cut: what was found.
        is_loss: the tensor that was cut off is the loss itself.
    """
    name, place = cut.name, cut.place
    if name in _WRAPPERS:
        return _wrapped(cut, is_loss=is_loss)
    if name in ("detach", "detach_"):
        why = ".detach() gives a tensor that autograd knows nothing of, so no gradient passes this line."
        return Cause(cut.spoken, place, why, _without(place, ".detach()", ".detach_()"))
    if name == "data":
        why = ".data reads the values past autograd, so no gradient passes this line."
        return Cause(cut.spoken, place, why, _without(place, ".data"))
    if name in NUMBERS:
        why = f"{cut.spoken} turns the tensor into a plain value outside of autograd, which can carry no gradient."
        remedy = _without(place, ".item()", ".tolist()", ".numpy()")
        if remedy == _GENERIC:
            remedy = "keep the tensor as it is, and compute on with torch functions"
        return Cause(cut.spoken, place, why, remedy)
    if name in COMPARISONS:
        why = f"{cut.spoken} gives True or False, which does not change under small changes of its input: no gradient."
        return Cause(cut.spoken, place, why, _piecewise(place))
    if name in INDEX_MAKERS:
        why = f"{cut.spoken} gives whole numbers, which do not change under small changes of its input: no gradient."
        remedy = "use torch.softmax(x, dim) and a weighted sum" if name.startswith("arg") else _SMOOTH
        return Cause(cut.spoken, place, why, remedy)
    if cut.spoken.startswith("the cast to"):
        why = f"{cut.spoken} rounds to whole numbers, which carry no gradient."
        return Cause(cut.spoken, place, why, "stay with floating point; cast only what serves as an index")
    if cut.by_mode:
        why = f"{cut.spoken} runs while gradients are switched off (torch.no_grad or torch.inference_mode)."
        return Cause("no_grad", place, why, "move this line out of the torch.no_grad() block")
    if name.endswith(".apply"):
        why = f"{cut.spoken.removesuffix('(...)')} gives an output that autograd cannot follow back to this input."
        return Cause(cut.spoken, place, why, "return a gradient for every input from backward")
    why = f"gradients enter {cut.spoken} and do not leave it."
    return Cause(cut.spoken, place, why, "replace it by an operation that torch can differentiate")


_GENERIC = "use the tensor itself"
_SMOOTH = "replace it by a smooth function, such as torch.sigmoid((x - limit) / width)"


def _wrapped(cut: Cut, *, is_loss: bool) -> Cause:
    what = "the loss" if is_loss else "the tensor"
    why = (
        f"{cut.spoken} makes a new leaf that only has the value of {what}: backward() ends at it, and every parameter "
        "before it gets no gradient."
    )
    if is_loss:
        return Cause(cut.spoken, cut.place, why, f"return {_argument(cut.place) or 'loss'}")
    remedy = "torch.stack([...]) keeps the graph" if cut.name.startswith("torch.") else _GENERIC
    return Cause(cut.spoken, cut.place, why, remedy)


def _argument(place: Place) -> str | None:
    """Find the name that a line wraps, as in `Variable(loss, requires_grad=True)`."""
    with contextlib.suppress(SyntaxError, ValueError):
        for node in ast.walk(ast.parse(place.code)):
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Name):
                continue
            if ast.unparse(node.func).rpartition(".")[2] in ("Variable", "Parameter", "tensor", "as_tensor"):
                return node.args[0].id
    return None


def _without(place: Place, *parts: str) -> str:
    """Write the line without the part that cuts."""
    source = place.code
    for part in parts:
        if source.count(part) == 1:
            return source.replace(part, "")
    return _GENERIC


def _piecewise(place: Place) -> str:
    """Write the penalty with a slope that a thresholded loss lacks, from the comparisons of the line itself."""
    with contextlib.suppress(SyntaxError, ValueError):
        bounds = _comparisons(_expression(place.code))
        if bounds:
            condition = " & ".join(f"({left} {sign} {right})" for left, sign, right in bounds)
            slopes = [
                f"{left} - {right}" if sign in (">", ">=") else f"{right} - {left}" for left, sign, right in bounds
            ]
            slope = slopes[0]
            for other in slopes[1:]:
                slope = f"torch.minimum({slope}, {other})"
            return f"torch.where({condition}, {slope}, 0.0).mean()"
    return "torch.where((x > low) & (x < high), torch.minimum(x - low, high - x), 0.0).mean()"


def _expression(source: str) -> ast.AST:
    """Parse a line that may be the head of a block."""
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.parse(f"{source.rstrip(':')}: pass" if source.endswith(":") else source + " pass")


def _comparisons(tree: ast.AST) -> list[tuple[str, str, str]]:
    signs = {ast.Gt: ">", ast.GtE: ">=", ast.Lt: "<", ast.LtE: "<="}
    found: list[tuple[str, str, str]] = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare):
            continue
        operands = [ast.unparse(operand) for operand in (node.left, *node.comparators)]
        chain = zip(operands, node.ops, operands[1:], strict=False)
        for left, operator, right in chain:
            sign = signs.get(type(operator))
            if sign is None:
                return []
            is_flipped = left.replace(".", "").lstrip("-").isdigit()
            # The limit stands on the right, so that the slope can be read off.
            flipped = {">": "<", "<": ">", ">=": "<=", "<=": ">="}[sign]
            found.append((right, flipped, left) if is_flipped else (left, sign, right))
    names = {left for left, _, _ in found}
    return found if len(names) == 1 and len(found) <= 2 else []


def cause_of_zero(operation: str, place: Place, *, missing: bool) -> Cause:
    """Explain where a gradient becomes zero."""
    bare = operation.removesuffix("(...)").strip("_.").removesuffix("()")
    if missing:
        why = f"the backward of {bare} returns None for this input."
        return Cause(operation, place, why, "return a gradient for every input from backward")
    if bare in STEPS:
        why = f"{bare} is constant between its steps, so its derivative is zero everywhere."
        remedy = f"for a straight-through gradient: x + (torch.{bare}(x) - x).detach()"
        return Cause(operation, place, why, remedy)
    if "relu" in bare or bare in ("threshold", "clamp_min"):
        why = f"every input of {bare} that this parameter reaches is negative: the units are dead for this data."
        return Cause(
            operation, place, why, "use F.leaky_relu, or start from smaller weights and a bias that is not negative"
        )
    if bare in ("clamp", "clip", "hardtanh", "clamp_max", "hardsigmoid"):
        why = f"every input of {bare} lies outside of its limits, where it is constant."
        return Cause(operation, place, why, "widen the limits, or scale the input")
    if bare in ("softmax", "log_softmax", "cross_entropy", "sigmoid", "tanh", "erf"):
        why = f"{bare} is saturated: its inputs are so large that it no longer changes in this precision."
        return Cause(
            operation, place, why, f"scale the inputs of {bare} down, as by 1 / sqrt(width), or normalize them"
        )
    if bare in (
        "mul",
        "__mul__",
        "rmul",
        "linear",
        "matmul",
        "conv2d",
        "conv1d",
        "conv3d",
        "addmm",
        "bmm",
        "einsum",
        "multiply",
    ):
        why = f"the other factor of {bare} is zero everywhere, so that the gradient is multiplied by zero."
        return Cause(operation, place, why, "start the other factor from values that are not zero")
    if bare.endswith(".apply"):
        why = f"the backward of {bare.removesuffix('.apply')} gives zero for this input."
        return Cause(operation, place, why, "return the gradient for this input from backward")
    why = f"a gradient enters {bare} and leaves it as zero."
    return Cause(operation, place, why, "look at the values that enter this line: it is constant around them")


def cause_of_non_finite(operation: str, place: Place, *, forward: bool) -> Cause:
    """Explain where NaN or infinity is born."""
    bare = operation.removesuffix("(...)").strip("_.").removesuffix("()")
    remedies = {
        "sqrt": "torch.sqrt(x + 1e-12), or torch.where around the input and not around the result",
        "norm": "torch.sqrt(x.square().sum() + 1e-12)",
        "vector_norm": "torch.sqrt(x.square().sum() + 1e-12)",
        "log": "torch.log(x.clamp_min(1e-12)), or F.log_softmax for the log of a softmax",
        "div": "divide by (x + 1e-12), or select with torch.where before dividing",
        "truediv": "divide by (x + 1e-12), or select with torch.where before dividing",
        "pow": "add 1e-12 to the base",
        "acos": "clamp the input to (-1 + 1e-7, 1 - 1e-7)",
        "asin": "clamp the input to (-1 + 1e-7, 1 - 1e-7)",
        "exp": "subtract the maximum first, as torch.logsumexp does",
        "std": "torch.sqrt(x.var() + 1e-12)",
    }
    if forward:
        why = f"the inputs of {bare} are finite, its output is not."
    else:
        why = f"a finite gradient enters {bare} and leaves it as NaN or infinity: its slope is infinite at this input."
    return Cause(
        operation, place, why, remedies.get(bare.strip("_"), "keep the input away from where this line is singular")
    )
