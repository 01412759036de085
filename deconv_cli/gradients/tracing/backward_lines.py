"""Find lines inside a hand-written backward: the gradient of an input, a write, the first mistake."""

from __future__ import annotations

import ast
import contextlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import CodeType, FrameType
from typing import Any

import torch

from deconv_cli.gradients.nested_tensors import real
from deconv_cli.gradients.tracing.code_location import CodeLocation, location_of_backward

_MAX_LABELS = 2
"""Distinct values other than zero of masks and signs, which are the same in right and wrong ones."""


class BackwardSource:
    """The source of the backward of a Function; without a source its methods find nothing."""

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        self._whole = location_of_backward(function)
        self._tree: ast.AST = ast.Module([], [])
        self._shift = 0
        self._code: CodeType | None = None
        with contextlib.suppress(OSError, TypeError, SyntaxError):
            code = inspect.unwrap(function.backward).__code__
            lines, first = inspect.getsourcelines(code)
            self._tree = ast.parse(textwrap.dedent("".join(lines)))
            self._file, self._shift, self._code = code.co_filename, first - 1, code

    def of_gradient(self, position: int) -> CodeLocation:
        """Find the line that computes the gradient of an input."""
        returned = self._returned(position)
        if returned is None:
            return self._whole
        lines = [line for line, names, _ in self._assigned if isinstance(returned, ast.Name) and returned.id in names]
        return self._at(max(lines, default=returned.lineno))

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

    def of_first_mistake(
        self,
        run: Callable[[], object],
        known: Sequence[torch.Tensor],
        wrong: Sequence[int],
        right: Sequence[int],
        ratios: Sequence[torch.Tensor],
        *,
        is_scaled: bool,
    ) -> CodeLocation | None:
        """Find the first line whose value departs from the chain rule, by the values that a run assigns.

        Args:
            run: calls backward.
            known: the values of forward, the gradients by them, from autograd, and quotients of these.
            wrong: positions of the inputs with a wrong gradient.
            right: positions of the inputs with a right gradient.
            ratios: the wrong gradients over those of autograd.
            is_scaled: each wrong gradient is the right one times a factor, which no transpose or unfolding makes.
        """
        assigned, known = self._assigned, [value.flatten() for value in known]  # a new shape is no mistake
        values = self._values_assigned(run, {line: names for line, names, _ in assigned})
        goals = [self._returned(position) for position in wrong]
        behind = _slice(assigned, goals)
        cleared = _slice(assigned, [self._returned(position) for position in right])
        moving = set[int]()
        nodes = [node for node in ast.walk(self._tree) if isinstance(node, ast.Assign)]
        renaming = {node.lineno for node in nodes if isinstance(node.value, ast.Name)}
        computing = {line: found for line, found in values.items() if line not in renaming}
        for line, names, read in assigned:
            found, is_updated = values.get(line, []), _is_updated(names, assigned)
            others = [other[-1] for n, other in computing.items() if n != line and line in computing]
            if not _is_known(found, known, is_updated=is_updated):
                moving |= {line} if all(any(_is_moved(v, k) for k in known) for v in found) else set()
                continue
            if not any(bool(value.any()) for value in found):
                cleared.add(line)  # a zero proves nothing about the lines that it was computed from
            elif not _is_known(found[-1:], others, is_updated=True):
                # If two lines compute the same value, the lines that use it decide which one is right.
                cleared |= {line} | _slice(assigned, [], read)
        started = {line for line, names, read in assigned if _is_updated(names, assigned) and not names & read}
        suspects = [line for line in values if line in behind - cleared - started]
        # A line before the incoming gradient is wrong if a slope in place of its value corrects the gradient.
        incoming, doubtful = self._lines_after_incoming(), set[int]()
        for line in suspects:
            value = values[line][-1]
            slopes = [value / ratio.flatten() for ratio in ratios if ratio.numel() == value.numel()]
            if line not in incoming and any(_is_known([slope], known, is_updated=False) for slope in slopes):
                return self._at(line) if is_scaled or not doubtful else self._whole  # it may use a wrong line
            doubtful |= {line} if slopes and line not in incoming else set()
        first = next((line for line in suspects if line not in moving), None)
        if first in doubtful or (first is not None and not is_scaled and suspects[0] in moving):
            return self._whole  # an earlier line that moves values, or a later one, may be wrong as well
        return None if first is None else self._at(first)

    def _lines_after_incoming(self) -> set[int]:
        """List the lines that depend on the incoming gradients, the arguments of backward after the context."""
        if self._code is None:
            return set()
        n_arguments = self._code.co_argcount + bool(self._code.co_flags & inspect.CO_VARARGS)
        users = [(line, read, written) for line, written, read in self._assigned]
        return _slice(users, [], self._code.co_varnames[1:n_arguments])

    def _values_assigned(self, run: Callable[[], object], names: dict[int, set[str]]) -> dict[int, list[torch.Tensor]]:
        """Collect the values that each line assigns, flattened, in the order in which the lines first run."""
        code, shift = self._code, self._shift
        values: dict[int, list[torch.Tensor]] = {}
        last = 0

        def trace(frame: FrameType, event: str, _argument: object) -> Any:  # noqa: ANN401  Python's own signature
            nonlocal last
            if frame.f_code is not code:
                return None
            if event in ("line", "return"):
                found = real([frame.f_locals.get(name) for name in names.get(last, ())])
                values.setdefault(last, []).extend(value.detach().flatten().clone() for value in found)
                last = frame.f_lineno - shift
            return trace

        kept = sys.gettrace()
        sys.settrace(trace)
        try:
            run()
        finally:
            sys.settrace(kept)
        return {line: found for line, found in values.items() if found}

    def _at(self, line: int) -> CodeLocation:
        return CodeLocation(self._file, self._shift + line, self._whole.function)

    def _returned(self, position: int) -> ast.expr | None:
        """Find the expression that the only return of the function holds for an input."""
        returns = [node for node in ast.walk(self._tree) if isinstance(node, ast.Return) and node.value is not None]
        if len(returns) != 1:
            return None
        value = returns[0].value
        if isinstance(value, ast.Tuple):
            return value.elts[position] if position < len(value.elts) else None
        return value

    @property
    def _assigned(self) -> list[_Assignment]:
        return [found for found in map(_assigned, ast.walk(self._tree)) if found is not None]


_Assignment = tuple[int, set[str], set[str]]
"""A line, the names that it assigns, and the names that it reads."""


def _assigned(node: ast.AST) -> _Assignment | None:
    if not isinstance(node, ast.Assign | ast.AugAssign) or "saved_tensors" in ast.unparse(node.value):
        return None
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    into = {name.id for t in targets if isinstance(t, ast.Subscript) for name in _names(t.value)}
    written = into | {name.id for t in targets if not isinstance(t, ast.Subscript) for name in _names(t)}
    updated = written if isinstance(node, ast.AugAssign) else into
    return node.lineno, written, updated | {name.id for name in _names(node.value)}


def _slice(assigned: Sequence[_Assignment], goals: Sequence[ast.expr | None], names: Iterable[str] = ()) -> set[int]:
    """List the lines that compute the inputs of expressions or names."""
    wanted = {name.id for goal in goals if goal is not None for name in _names(goal)} | set(names)
    lines: set[int] = set()
    while True:
        new = {line for line, written, _ in assigned if written & wanted} - lines
        if not new:
            return lines
        lines |= new
        wanted |= {name for line, _, read in assigned if line in new for name in read}


def _is_updated(names: set[str], assigned: Sequence[_Assignment]) -> bool:
    """Return whether several lines, or one repeated line, fill a name."""
    return any(names & written & read for _, written, read in assigned)


def _is_known(values: Sequence[torch.Tensor], known: Sequence[torch.Tensor], *, is_updated: bool) -> bool:
    """Return whether all assigned values, or the last one of an updated name, are known."""
    chosen = values[-1:] if is_updated else values
    return bool(chosen) and all(
        any((v.shape, v.dtype) == (k.shape, k.dtype) and torch.allclose(v, k, rtol=1e-6, atol=1e-9) for k in known)
        for v in chosen
    )


def _is_moved(value: torch.Tensor, known: torch.Tensor) -> bool:
    """Return whether a tensor holds exactly the values of a known one, several times or padded with zeros."""
    mine, own = (tensor[tensor != 0].unique() for tensor in (value, known))
    return mine.dtype == own.dtype and len(own) > _MAX_LABELS and torch.equal(mine, own)


def _names(tree: ast.AST) -> Iterator[ast.Name]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Name))
