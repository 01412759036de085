"""For each kind of cause: why it harms, in one sentence, and what to write instead, in one line."""

from __future__ import annotations

import ast
import contextlib

from deconv_cli.gradients.functions import definition_of
from deconv_cli.gradients.operations import COMPARISONS, INDEX_MAKERS, NUMBERS, STEPS
from deconv_cli.gradients.rewriting import without_cut
from deconv_cli.gradients.tracing import Cut, Trace
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
        return Cause(cut.spoken, place, why, _without_cut(place))
    if name == "data":
        why = ".data reads the values past autograd, so no gradient passes this line."
        return Cause(cut.spoken, place, why, _without_cut(place))
    if name in NUMBERS:
        why = f"{cut.spoken} turns the tensor into a plain value outside of autograd, which can carry no gradient."
        return Cause(cut.spoken, place, why, without_cut(place.code) or _STAY_IN_TORCH)
    if name == "grad":
        why = f"{cut.spoken} without create_graph=True gives plain values, so no gradient passes this line."
        return Cause(cut.spoken, place, why, "pass create_graph=True")
    if name == "CheckpointFunction.apply":
        why = "a reentrant checkpoint gives gradients only where one of its inputs requires a gradient, and none does."
        return Cause("checkpoint(...)", place, why, "pass use_reentrant=False")
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
    if name.endswith(".apply") and cut.is_hidden:
        why = f"forward of {name.removesuffix('.apply')} reads a parameter that is not among its arguments."
        return Cause(cut.spoken, place, why, "hand the parameter to apply, and return its gradient from backward")
    if name.endswith(".apply"):
        why = f"{cut.spoken.removesuffix('(...)')} gives an output that autograd cannot follow back to this input."
        return Cause(cut.spoken, place, why, "return a gradient for every input from backward")
    why = f"gradients enter {cut.spoken} and do not leave it."
    return Cause(cut.spoken, place, why, "replace it by an operation that torch can differentiate")


NOT_BORN = Cause(
    "NaN or infinity",
    Place(),
    "no operation makes NaN or infinity of finite numbers, so they come in with the inputs, the target, the buffers or "
    "the parameters.",
    "find them with torch.isfinite, and replace them",
)
"""A loss that is not finite though nothing turned it so."""

_SMOOTH_UNITS = "use smooth units, such as SiLU, tanh or softplus, where the loss holds a derivative"
_GENERIC = "use the tensor itself"
_STAY_IN_TORCH = "keep the tensor as it is, and compute on with torch functions"
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


def _without_cut(place: Place) -> str:
    """Write the line without the part that cuts."""
    found = without_cut(place.code)
    if found is not None:
        return found
    # A piece of a longer statement, or the head of a block, is changed by its look.
    parts = [part for part in (".detach()", ".data", ".item()", ".tolist()", ".numpy()") if part in place.code]
    if parts in ([".detach()"], [".data"]) and place.code.count(parts[0]) == 1:
        return place.code.replace(parts[0], "")
    return _STAY_IN_TORCH if ".numpy()" in place.code else _GENERIC


def _piecewise(place: Place) -> str:
    """Write the penalty with a slope that a thresholded loss lacks, from the comparisons of the line itself.

    A single comparison may count what is wrong, or what is right; both penalties are written then.
    """
    with contextlib.suppress(SyntaxError, ValueError):
        bounds = _comparisons(_expression(place.code))
        if bounds:
            condition = " & ".join(f"({left} {sign} {right})" for left, sign, right in bounds)
            slopes = [
                f"{left} - {right}" if sign in (">", ">=") else f"{right} - {left}" for left, sign, right in bounds
            ]
            if len(bounds) == 1:
                left, sign, right = bounds[0]
                outside = f"{right} - {left}" if sign in (">", ">=") else f"{left} - {right}"
                return (
                    f"torch.where({condition}, {slopes[0]}, 0.0).mean() if it counts what is wrong; "
                    f"torch.where({condition}, 0.0, {outside}).mean() if it counts what is right"
                )
            return f"torch.where({condition}, torch.minimum({slopes[0]}, {slopes[1]}), 0.0).mean()"
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
    if bare == "ThresholdBackward":
        why = "the derivative of relu is a step, so the derivative of that is zero everywhere."
        return Cause(operation, place, why, _SMOOTH_UNITS)
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


def cause_of_hook(place: Place) -> Cause:
    """Explain a gradient that a hook changes."""
    why = "a hook changes the gradient on its way, so it is no longer the derivative of the loss."
    return Cause("a gradient hook", place, why, "remove the hook, or accept it with --expect WRONG:NAME")


def cause_of_shift(place: Place, *, is_moved: bool, is_smooth: bool) -> Cause:
    """Explain a parameter that torch.autograd.grad leaves out of a derivative.

    Args:
        place: where the derivative is taken.
        is_moved: the loss changes all the same when the parameter changes.
        is_smooth: it does so under small changes as well.
    """
    operation = "torch.autograd.grad(...)"
    if is_smooth:
        why = "the derivative depends on this parameter, but a hand-written backward on the way gives plain values."
        return Cause(operation, place, why, "write that backward with torch functions of saved tensors")
    if is_moved:
        why = "the loss holds only a derivative, and that changes with this parameter in steps: its slope is zero."
        return Cause(operation, place, why, _SMOOTH_UNITS)
    why = "the loss holds only a derivative, from which this parameter drops out: it shifts what is differentiated."
    return Cause(operation, place, why, "nothing, unless what is differentiated belongs in the loss as well")


def cause_of_backward(error: Exception, place: Place | None, watched: Trace, message: str) -> Cause:
    """Explain a backward pass that raises: by the line that raised, or the Function or hook that torch speaks of.

    Args:
        error: what was raised.
        place: the innermost line of the user's own code in its traceback, if there is one.
        watched: the forward pass.
        message: the first line of the error's own words.
    """
    why = f"backward raises {type(error).__name__}: {message}."
    hooks = {(hook.place.file, hook.place.function): hook.place for hook in watched.hooks}
    if place is not None and place.file and (place.file, place.function) in hooks:
        return Cause("a gradient hook", place, why, "mend this line of the hook, or remove the hook")
    if place is not None and place.file:
        return Cause("backward", place, why, "mend this line of the hand-written backward")
    for call in watched.calls:
        if f"{call.function.__name__}Backward" in message:
            remedy = "return one gradient for each input of forward, each of the shape of its input"
            return Cause(f"{call.function.__name__}.backward", definition_of(call.function), why, remedy)
    for hook in watched.hooks:
        if f"hook '{hook.place.function}'" in message:
            return Cause("a gradient hook", hook.place, why, "return a gradient of the same shape from the hook")
    return Cause("backward", Place(), why, "look at the message of torch")
