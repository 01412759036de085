"""Rewrite one line of source so that it runs and carries a gradient."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Sequence

from deconv_cli.gradients.tracing.forward_trace import InPlaceWrite

LEAVE_OUT = "leave this line out"
"""The suggestion for a line that only detaches."""

STAY_IN_TORCH = "keep the tensor as it is, and compute on with torch functions"
_DETACHING = ("detach", "detach_", "data", "item", "tolist", "numpy")
_NUMPY = ("np", "numpy", "onp")
_WRAPPERS = ("tensor", "as_tensor", "from_numpy", "Variable", "Parameter")
"""Functions that make a new tensor of their argument."""

_SAME_IN_TORCH = ("mean", "sum", "abs", "exp", "log", "sqrt", "tanh", "sin", "cos", "square", "prod")
"""Functions of NumPy that torch has under the same name, with one argument."""


def line_without_detachment(source: str) -> str | None:
    """Write a line without its one `.detach()`, `.data`, `.item()`, `.tolist()`, `float(...)` or way to NumPy.

    Returns:
        A line that runs and carries gradients, `LEAVE_OUT`, or None where that is not certain.
    """
    with contextlib.suppress(SyntaxError, ValueError):
        tree = ast.parse(source)
        changer = _Changer()
        body = changer.visit(tree).body
        if len(body) != 1 or changer.n_changed != 1 or _uses_numpy(body[0]):
            return None
        if changer.has_left_torch and not changer.n_translated:
            return None
        if isinstance(body[0], ast.Expr) and not source.endswith(".detach_()"):
            return None  # a part of a longer statement
        return LEAVE_OUT if _does_nothing(body[0]) else ast.unparse(body[0])
    return None


def line_without_wrapper(source: str) -> str | None:
    """Write a line with its one `Variable(x)`, `nn.Parameter(x)` or `torch.tensor(x)` replaced by `x`."""
    with contextlib.suppress(SyntaxError, ValueError):
        tree = ast.parse(source)
        wrappers = [node for node in ast.walk(tree) if _wraps(node)]
        if len(tree.body) == 1 and len(wrappers) == 1:
            body = _Unwrapper().visit(tree).body[0]
            return LEAVE_OUT if _does_nothing(body) else ast.unparse(body)
    return None


class _Unwrapper(ast.NodeTransformer):
    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Replace a wrapper by its argument; a list of tensors is stacked."""
        self.generic_visit(node)
        return _unwrapped(node) if _wraps(node) else node


def _wraps(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or not node.args:
        return False
    name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    return name in _WRAPPERS


def _unwrapped(node: ast.Call) -> ast.expr:
    wrapped = node.args[0]
    if not isinstance(wrapped, ast.List | ast.ListComp | ast.Tuple):
        return wrapped
    return ast.Call(ast.Attribute(ast.Name("torch", ast.Load()), "stack", ast.Load()), [wrapped], [])


def line_with_keyword(source: str, function: str, keyword: str, *, value: bool) -> str | None:
    """Write a line with a keyword argument set in its one call of a function; None where that is not certain."""
    with contextlib.suppress(SyntaxError, ValueError):
        tree = ast.parse(source)
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        wanted = [call for call in calls if ast.unparse(call.func).rpartition(".")[2] == function]
        if len(tree.body) == 1 and len(wanted) == 1:
            kept = [given for given in wanted[0].keywords if given.arg != keyword]
            wanted[0].keywords = [*kept, ast.keyword(keyword, ast.Constant(value))]
            return ast.unparse(tree.body[0])
    return None


class _Changer(ast.NodeTransformer):
    """Removes detachments, and counts them; a chain of several counts as one."""

    def __init__(self) -> None:
        self.n_changed = self.n_translated = 0
        self.has_left_torch = False

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Remove `.detach()` and similar calls, turn `float(x)` into `x` and `np.mean(x)` into `torch.mean(x)`."""
        function = node.func
        if _detaches(node):
            return self._bare(node)
        if isinstance(function, ast.Name) and function.id == "float" and len(node.args) == 1:
            self.n_changed += 1
            return self._stripped(node.args[0]) if _detaches(node.args[0]) else self.visit(node.args[0])
        before = self.n_changed
        self.generic_visit(node)
        if self.n_changed > before and _wraps(node):
            return _unwrapped(node)  # it would make a new leaf of a tensor
        if (
            isinstance(function, ast.Attribute)
            and isinstance(function.value, ast.Name)
            and function.value.id in _NUMPY
            and function.attr in _SAME_IN_TORCH
            and len(node.args) == 1
            and not node.keywords
        ):
            self.n_translated += 1
            function.value = ast.Name("torch", ast.Load())
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """Remove `.data`."""
        return self._bare(node) if _detaches(node) else self.generic_visit(node)

    def _bare(self, node: ast.expr) -> ast.AST:
        self.n_changed += 1
        return self._stripped(node)

    def _stripped(self, node: ast.expr) -> ast.AST:
        """Strip a chain of detachments, and `.cpu()` before `.numpy()`."""
        while True:
            attribute = node.func if isinstance(node, ast.Call) else node
            if not isinstance(attribute, ast.Attribute):
                break
            self.has_left_torch = self.has_left_torch or (_detaches(node) and attribute.attr == "numpy")
            if not _detaches(node) and not (self.has_left_torch and _is_plain_call(node, "cpu")):
                break
            node = attribute.value
        return self.visit(node)


def _detaches(node: ast.expr) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr == "data"
    return any(_is_plain_call(node, name) for name in _DETACHING if name != "data")


def _is_plain_call(node: ast.expr, name: str) -> bool:
    """Return whether a node is `x.name()` without arguments."""
    if not isinstance(node, ast.Call) or node.args or node.keywords:
        return False
    return isinstance(node.func, ast.Attribute) and node.func.attr == name


def _uses_numpy(tree: ast.AST) -> bool:
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return bool(names & {*_NUMPY, "from_numpy"})


def _does_nothing(statement: ast.AST) -> bool:
    """Return whether a statement is `h = h` or a bare `h`."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        return ast.unparse(statement.targets[0]) == ast.unparse(statement.value)
    return isinstance(statement, ast.Expr) and not any(isinstance(node, ast.Call) for node in ast.walk(statement))


def write_piecewise_loss(source: str) -> str:
    """Write a penalty with a slope, from the comparisons in the line of a thresholded loss.

    A single comparison may count what is wrong, or what is right; both penalties are written then.
    """
    with contextlib.suppress(SyntaxError, ValueError):
        bounds = _comparisons(_parse(source))
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


def _parse(source: str) -> ast.AST:
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
            # The limit is on the right, so that the slope can be read off.
            flipped = {">": "<", "<": ">", ">=": "<=", "<=": ">="}[sign]
            found.append((right, flipped, left) if is_flipped else (left, sign, right))
    names = {left for left, _, _ in found}
    return found if len(names) == 1 and len(found) <= 2 else []


_MESSAGE = re.compile(
    r"\[torch\.\w+ \[([\d, ]*)\]\](?:, which is output \d+ of (\w+))?, is at version (\d+); expected version (\d+)"
)
"""Torch's message on an overwritten tensor: its shape, the node that made it, and its counts of writes."""


def writes_at_fault(error: Exception | None, writes: Sequence[InPlaceWrite]) -> list[InPlaceWrite] | None:
    """List the writes that fit torch's message on an overwritten tensor; None for another error."""
    found = _MESSAGE.search(str(error)) if error is not None else None
    if found is None:
        return None
    shape = tuple(int(size) for size in found[1].split(",") if size.strip())
    node, actual, expected = found[2], int(found[3]), int(found[4])
    fitting = [write for write in writes if write.shape == shape and expected < write.version <= actual]
    exact = [write for write in fitting if node is None or write.node == node]
    return exact or fitting or list(writes)


def line_out_of_place(source: str) -> str | None:
    """Write a line that makes a new tensor instead; None where that is not certain."""
    augmented = re.fullmatch(r"([\w.\[\]]+)\s*([-+*/@])=\s*(.+)", source)
    if augmented and "[" not in augmented[1]:
        return f"{augmented[1]} = {augmented[1]} {augmented[2]} {augmented[3]}"
    method = re.fullmatch(r"(?:([\w.]+)\s*=\s*)?([\w.]+)\.(\w+)_\((.*)\)", source)
    if method:
        return f"{method[1] or method[2]} = {method[2]}.{method[3]}({method[4]})"
    return None
