"""Lines inside a hand-written backward: where the gradient of an input is computed, and where something is written."""

from __future__ import annotations

import ast
import contextlib
import inspect
import textwrap
from collections.abc import Iterator, Sequence

import torch

from deconv_cli.gradients.tracing.code_location import CodeLocation, location_of_backward


class BackwardSource:
    """The source of the backward, or of the forward, of a Function; without a source nothing is found."""

    def __init__(self, function: type[torch.autograd.Function], method: str = "backward") -> None:
        self._whole = location_of_backward(function)
        self._tree: ast.AST = ast.Module([], [])
        self._shift = 0
        with contextlib.suppress(OSError, TypeError, SyntaxError):
            code = inspect.unwrap(getattr(function, method)).__code__
            lines, first = inspect.getsourcelines(code)
            self._tree = ast.parse(textwrap.dedent("".join(lines)))
            self._file, self._shift = code.co_filename, first - 1

    def of_gradient(self, positions: Sequence[int]) -> CodeLocation:
        """Find where the gradient of one input is computed, or, of several, what all of them are computed from."""
        returned = [self._returned(position) for position in positions]
        if any(expression is None for expression in returned) or not returned:
            return self._whole
        shared = set.intersection(*({name.id for name in _names(found)} for found in returned if found is not None))
        lines = [line for name, line in self._assignments() if name in shared]
        if lines and (len(positions) > 1 or isinstance(returned[0], ast.Name)):
            return self._at(max(lines))
        return self._at(returned[0].lineno if returned[0] is not None else 0)

    def of_write(self) -> CodeLocation:
        """Find the first line that writes to a tensor in place."""
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                is_write = node.func.attr.endswith("_") and not node.func.attr.endswith("__")
            elif isinstance(node, ast.Assign):
                is_write = any(isinstance(target, ast.Subscript) for target in node.targets)
            else:
                is_write = isinstance(node, ast.AugAssign)
            if is_write and isinstance(node, ast.expr | ast.stmt):
                return self._at(node.lineno)
        return self._whole

    def of_change(self) -> CodeLocation | None:
        """Find the first line that gives a new value to an incoming gradient; None where there is none."""
        function = next((node for node in ast.walk(self._tree) if isinstance(node, ast.FunctionDef)), None)
        incoming = {argument.arg for argument in function.args.args[1:]} if function is not None else set()
        return next((self._at(line) for name, line in self._assignments() if name in incoming), None)

    def _at(self, line: int) -> CodeLocation:
        return CodeLocation(self._file, self._shift + line, self._whole.function)

    def _returned(self, position: int) -> ast.expr | None:
        """Find what is returned for an input, by the one return of the function."""
        returns = [node for node in ast.walk(self._tree) if isinstance(node, ast.Return) and node.value is not None]
        if len(returns) != 1:
            return None
        value = returns[0].value
        if isinstance(value, ast.Tuple):
            return value.elts[position] if position < len(value.elts) else None
        return value

    def _assignments(self) -> Iterator[tuple[str, int]]:
        """List the names that are given a value, each with its line, but for what was saved."""
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Assign) and "saved_tensors" not in ast.unparse(node.value):
                yield from ((name.id, node.lineno) for target in node.targets for name in _names(target))
            elif isinstance(node, ast.AugAssign):
                yield from ((name.id, node.lineno) for name in _names(node.target))


def _names(tree: ast.AST) -> Iterator[ast.Name]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Name))
