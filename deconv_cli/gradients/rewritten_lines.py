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
_DETACHING = ("detach", "detach_", "item", "tolist")
_NUMPY = re.compile(r"\b(np|numpy|from_numpy)\b")
_WRAPPERS = ("tensor", "as_tensor", "Variable", "Parameter")
"""Functions that make a new tensor of their argument."""


def line_with_gradient(source: str) -> str | None:
    """Write a line without its one `.detach()`, `.data`, `.item()`, `float(x)`, `torch.tensor(x)` or `Variable(x)`.

    Returns:
        A line that carries gradients, `LEAVE_OUT` for a line that only detaches, or None where that is not certain.
    """
    with contextlib.suppress(SyntaxError, ValueError):
        remover = _Remover()
        body = remover.visit(ast.parse(source)).body
        if len(body) != 1 or remover.n_removed != 1 or _NUMPY.search(source):
            return None
        if isinstance(body[0], ast.Expr) and not isinstance(body[0].value, ast.Call):
            return LEAVE_OUT if source.endswith(".detach_()") else None  # else a part of a longer statement
        is_empty = isinstance(body[0], ast.Assign) and ast.unparse(body[0].targets[0]) == ast.unparse(body[0].value)
        return LEAVE_OUT if is_empty else ast.unparse(body[0])
    return None


class _Remover(ast.NodeTransformer):
    """Removes detachments and wrappers, and counts them; those inside of one another count as one."""

    def __init__(self) -> None:
        self.n_removed = 0

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Replace `x.detach()` and `float(x)` by `x`, and a wrapped list of tensors by their stack."""
        function, is_plain = node.func, not node.args and not node.keywords
        if isinstance(function, ast.Attribute) and function.attr in _DETACHING and is_plain:
            return self._inside(function.value)
        if not node.args or not any(isinstance(part, ast.Name) for part in ast.walk(node.args[0])):
            return self.generic_visit(node)
        if isinstance(function, ast.Name) and function.id == "float":
            return self._inside(node.args[0])
        if ast.unparse(function).rpartition(".")[2] in _WRAPPERS:
            inside = self._inside(node.args[0])
            is_list = isinstance(inside, ast.List | ast.ListComp | ast.Tuple)
            return ast.Call(ast.Name("torch.stack", ast.Load()), [inside], []) if is_list else inside
        return self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """Replace `x.data` by `x`."""
        return self._inside(node.value) if node.attr == "data" else self.generic_visit(node)

    def _inside(self, node: ast.expr) -> ast.expr:
        before = self.n_removed
        inside: ast.expr = self.visit(node)
        self.n_removed = before + 1
        return inside


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
