"""A suggested line is tried before it is printed: the function around it runs with that line instead of its own."""

from __future__ import annotations

import contextlib
import gc
import linecache
import math
import re
from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType

import torch

from deconv_cli.gradients.automatic_fix import (
    LEAVE_OUT,
    line_with_keyword,
    line_without_detachment,
    line_without_wrapper,
)
from deconv_cli.gradients.subject import Subject, as_scalar
from deconv_cli.gradients.tracing.backward_trace import BackwardTrace
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.tracing.forward_trace import Detachment, ForwardTrace, InPlaceWrite
from deconv_cli.gradients.tracing.operations import WRAPPING

_MAX_LINES = 4
_SAME = 1e-5


def find_failing_fixes(subject: Subject, forward: ForwardTrace, backward: BackwardTrace | None) -> frozenset[str]:
    """List the lines where what would be suggested changes the loss, or brings no gradient to what had none.

    Lines that cannot be tried, such as those of recorded passes or of code without a file, are not listed.
    """
    if hasattr(subject.model, "running_location"):
        return frozenset()  # an exported program or a recorded pass runs none of the lines again
    failing: set[str] = set()
    tried: set[str] = set()
    for location, line, names in (*_of_detachments(subject, forward), *_of_writes(subject, forward, backward)):
        if line is None or not location.file or str(location) in tried or len(tried) == _MAX_LINES:
            continue
        tried.add(str(location))
        if _is_cured(subject, location, line, names, float(forward.loss.detach())) is False:
            failing.add(str(location))
    return frozenset(failing)


_Candidate = tuple[CodeLocation, str | None, list[str]]
"""A line, what is suggested for it, and the parameters that are to get a gradient."""


def _of_detachments(subject: Subject, forward: ForwardTrace) -> Iterator[_Candidate]:
    without = {name: forward.bit(name) for name in subject.trainable if not forward.reached & forward.bit(name)}
    for index in sorted(forward.flow.detachments):
        cut = forward.log.detachments[index]
        names = [name for name, bit in without.items() if cut.lost & bit]
        if names:
            yield cut.location, _suggested_line(cut), names
    for use in forward.log.outside_uses:
        names = [name for name, bit in without.items() if use.lost & bit]
        before = [forward.log.detachments[index] for index in use.before]
        for cut in (before or [use]) if names else ():
            yield cut.location, _suggested_line(cut), names


def _suggested_line(cut: Detachment) -> str | None:
    code = cut.location.code
    if ".sample(" in code:
        return code.replace(".sample(", ".rsample(")
    if cut.name == "grad":
        return line_with_keyword(code, "grad", "create_graph", value=True)
    if cut.name == "CheckpointFunction.apply":
        return line_with_keyword(code, "checkpoint", "use_reentrant", value=False)
    return line_without_wrapper(code) if cut.name in WRAPPING else line_without_detachment(code)


def _of_writes(subject: Subject, forward: ForwardTrace, backward: BackwardTrace | None) -> Iterator[_Candidate]:
    error = backward.error if backward is not None else None
    for write in writes_at_fault(error, forward.log.writes) or ():
        location = write.operation.location
        yield location, line_out_of_place(location.code), list(subject.trainable)


def _is_cured(subject: Subject, location: CodeLocation, line: str, names: list[str], loss: float) -> bool | None:
    """Return whether a line brings gradients to parameters without changing the loss; None where it cannot be tried."""
    try:
        with _replaced_line(location, "pass" if line == LEAVE_OUT else line):
            value = as_scalar(subject.run()[1])
            wanted = [subject.parameters[name] for name in names]
            given = torch.autograd.grad(value, wanted, allow_unused=True) if value.requires_grad else [None]
    except (SyntaxError, LookupError, ValueError):
        return None
    except Exception:  # noqa: BLE001  the line may not fit what stands around it, in any way
        return False
    return math.isclose(float(value.detach()), loss, rel_tol=_SAME, abs_tol=1e-12) and any(
        gradient is not None for gradient in given
    )


@contextlib.contextmanager
def _replaced_line(location: CodeLocation, line: str) -> Iterator[None]:
    """Let the function around a line run with another line for a while.

    Raises:
        LookupError: there is no such function, or no source.
    """
    assert location.file is not None
    assert location.line is not None
    lines = list(linecache.getlines(location.file))
    own = lines[location.line - 1]
    lines[location.line - 1] = f"{own[: len(own) - len(own.lstrip())]}{line}\n"
    function = _function_around(location)
    code = _same_code(compile("".join(lines), location.file, "exec"), function.__code__)
    kept, function.__code__ = function.__code__, code
    try:
        yield
    finally:
        function.__code__ = kept


def _function_around(location: CodeLocation) -> FunctionType:
    for found in gc.get_objects():
        if type(found) is FunctionType and found.__code__.co_filename == location.file:
            code = found.__code__
            if code.co_name == location.function and location.line in {n for _, _, n in code.co_lines()}:
                return found
    raise LookupError(location.function)


def _same_code(module: CodeType, wanted: CodeType) -> CodeType:
    waiting = [module]
    while waiting:
        code = waiting.pop()
        if (code.co_name, code.co_firstlineno) == (wanted.co_name, wanted.co_firstlineno):
            return code
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    raise LookupError(wanted.co_name)


_MESSAGE = re.compile(
    r"\[torch\.\w+ \[([\d, ]*)\]\](?:, which is output \d+ of (\w+))?, is at version (\d+); expected version (\d+)"
)
"""What torch says of the tensor: its shape, the node that made it, and how often it was written."""


def writes_at_fault(error: Exception | None, writes: Sequence[InPlaceWrite]) -> list[InPlaceWrite] | None:
    """List the writes that fit what torch says of the tensor; None where it says nothing of the kind."""
    found = _MESSAGE.search(str(error)) if error is not None else None
    if found is None:
        return None
    shape = tuple(int(size) for size in found[1].split(",") if size.strip())
    node, actual, expected = found[2], int(found[3]), int(found[4])
    fitting = [write for write in writes if write.shape == shape and expected < write.version <= actual]
    exact = [write for write in fitting if node is None or write.node == node]
    return exact or fitting or list(writes)


def line_out_of_place(source: str) -> str | None:
    """Write a line so that it makes a new tensor; None where that is not certain."""
    augmented = re.fullmatch(r"([\w.\[\]]+)\s*([-+*/@])=\s*(.+)", source)
    if augmented and "[" not in augmented[1]:
        return f"{augmented[1]} = {augmented[1]} {augmented[2]} {augmented[3]}"
    method = re.fullmatch(r"(?:([\w.]+)\s*=\s*)?([\w.]+)\.(\w+)_\((.*)\)", source)
    if method:
        return f"{method[1] or method[2]} = {method[2]}.{method[3]}({method[4]})"
    return None
