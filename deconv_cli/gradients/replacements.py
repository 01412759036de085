"""What to write instead of an operation without a useful gradient, tried before it is printed.

A suggestion is a rewritten line, a safe function in place of an operation, or advice. It helps if the loss stays the
same and the gradient arrives.
"""

from __future__ import annotations

import contextlib
import gc
import linecache
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from deconv_cli.gradients.rewritten_lines import (
    LEAVE_OUT,
    line_out_of_place,
    line_with_keyword,
    line_without_detachment,
    line_without_wrapper,
    writes_at_fault,
)
from deconv_cli.gradients.subject import Subject, as_scalar
from deconv_cli.gradients.tracing.backward_trace import BackwardTrace, Magnitude
from deconv_cli.gradients.tracing.code_location import CodeLocation, Locator
from deconv_cli.gradients.tracing.forward_trace import Detachment, ForwardTrace
from deconv_cli.gradients.tracing.operations import STEPS, WRAPPING, plain_name

_SMALL = 1e-12
_INSIDE = 1 - 1e-7
_LARGEST_EXPONENT = 80.0


@dataclass(frozen=True)
class Replacement:
    """A suggestion, and a function that does the same."""

    text: str
    function: Callable[..., torch.Tensor]


def _norm(x: torch.Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False) -> torch.Tensor:  # noqa: ANN401
    if p not in (2, 2.0, "fro", None):
        raise ValueError("only the Euclidean norm has a safe form")
    return torch.sqrt(x.square().sum(dim=dim, keepdim=keepdim) + _SMALL)


_NORM = Replacement("torch.sqrt(x.square().sum() + 1e-12), with the dim of the norm", _norm)
_QUOTIENT = Replacement(
    "divide by (x + 1e-12), or select with torch.where before dividing", lambda x, y: x / (y + _SMALL)
)

SINGULAR: dict[str, Replacement] = {
    "sqrt": Replacement(
        "torch.sqrt(x + 1e-12), or torch.where around the input and not around the result",
        lambda x: torch.sqrt(x + _SMALL),
    ),
    "norm": _NORM,
    "vector_norm": _NORM,
    "log": Replacement(
        "torch.log(x.clamp_min(1e-12)); for a softmax F.log_softmax, and for a sigmoid F.logsigmoid instead of both",
        lambda x: torch.log(x.clamp_min(_SMALL)),
    ),
    "div": _QUOTIENT,
    "truediv": _QUOTIENT,
    "pow": Replacement(
        "keep the base above zero: x.clamp_min(0) + 1e-12", lambda x, p: torch.pow(x.clamp_min(0) + _SMALL, p)
    ),
    "acos": Replacement("clamp the input to (-1 + 1e-7, 1 - 1e-7)", lambda x: torch.acos(x.clamp(-_INSIDE, _INSIDE))),
    "asin": Replacement("clamp the input to (-1 + 1e-7, 1 - 1e-7)", lambda x: torch.asin(x.clamp(-_INSIDE, _INSIDE))),
    "exp": Replacement(
        "torch.exp(x.clamp_max(80.0)), or torch.logsumexp where a logarithm follows",
        lambda x: torch.exp(x.clamp_max(_LARGEST_EXPONENT)),
    ),
    "std": Replacement(
        "torch.sqrt(x.var() + 1e-12), with the dim of std",
        lambda x, *args, **keywords: torch.sqrt(x.var(*args, **keywords) + _SMALL),
    ),
}
"""Safe functions for operations with an infinite slope somewhere, by their bare names."""

_NOTHING_CHOSEN = "leave it out where there is nothing to take the mean of, or divide the sum by max(count, 1)"
_NOTHING_TARGETED = (
    "see to it that each batch has a target that counts, or divide the sum (reduction='sum') by max(count, 1)"
)

_EQUAL_VALUES = (
    "keep eigenvalues and singular values apart, as by a small diagonal of different numbers, or let the loss depend "
    "on the values alone (eigvalsh, svdvals)"
)

ADVICE: dict[str, str] = {
    "softmax": "leave at least one number of each row unmasked, or mask with a large negative number such as -1e9",
    "scaled_dot_product_attention": "let each query see at least one key",
    "mean": _NOTHING_CHOSEN,
    "cross_entropy": _NOTHING_TARGETED,
    "nll_loss": _NOTHING_TARGETED,
    "std": "of a single number there is no deviation: take it over more of them, and keep it away from zero",
    "ctc_loss": "give it inputs that are longer than the targets, with a blank between equal ones",
    "kl_div": "pass log_target=True where the target holds logarithms, which are negative",
    "logdet": "torch.linalg.slogdet(x).logabsdet, where the sign of the determinant does not matter",
    "eigh": _EQUAL_VALUES,
    "svd": _EQUAL_VALUES,
}
"""Advice on operations whose NaN or infinity no change of the line itself removes, by their bare names."""


def straight_through(bare: str) -> Replacement:
    """Write a step with the same value, and the gradient of the identity."""
    step = getattr(torch, bare, None)

    def through(x: torch.Tensor) -> torch.Tensor:
        if step is None:
            raise ValueError(f"torch has no {bare}")
        return x + (step(x) - x).detach()

    return Replacement(f"for a straight-through gradient: x + (torch.{bare}(x) - x).detach()", through)


_MAX_TRIED = 4
_SAME_LOSS = 1e-5
_SIMILAR_LOSS = 1e-3
"""Change of the loss, relative or absolute, that a rewritten line and a safe function may make."""

IsGood = Callable[[Magnitude], bool]
"""Whether a gradient is as it should be."""


def find_failing_suggestions(subject: Subject, forward: ForwardTrace, backward: BackwardTrace) -> frozenset[str]:
    """List the lines whose suggestion was tried and does not help; lines that cannot be tried are not listed."""
    failing: set[str] = set()
    loss = float(forward.loss.detach())
    tried: set[str] = set()
    # An exported program or a recorded pass does not run the lines again.
    is_run_again = not hasattr(subject.model, "running_location")
    for location, line, names in _lines_to_try(subject, forward, backward) if is_run_again else ():
        if line is None or not location.file or str(location) in tried or len(tried) == _MAX_TRIED:
            continue
        tried.add(str(location))
        trial = _replaced_line(location, "pass" if line == LEAVE_OUT else line)
        if _helps(subject, trial, names, lambda found: found.largest is not None, loss, _SAME_LOSS) is False:
            failing.add(str(location))
    tried = set()
    for location, bare, names, is_good, switch in _operations_to_try(subject, forward, backward):
        if f"{location} {bare}" in tried or len(tried) == _MAX_TRIED or not location.file:
            continue
        tried.add(f"{location} {bare}")
        trial = _replaced_operation(subject, switch or location, bare, is_switch=switch is not None)
        if _helps(subject, trial, names, is_good, loss, _SIMILAR_LOSS) is False:
            failing.add(str(location))
    return frozenset(failing)


def _helps(
    subject: Subject,
    trial: AbstractContextManager[None],
    names: list[str],
    is_good: IsGood,
    loss: float,
    tolerance: float,
) -> bool | None:
    """Return whether a trial gives parameters good gradients and the same loss; None where it cannot be tried."""
    try:
        with trial:
            value = as_scalar(subject.run()[1])
        wanted = [subject.parameters[name] for name in names]
        given = torch.autograd.grad(value, wanted, allow_unused=True) if value.requires_grad else [None]
    except (SyntaxError, LookupError, ValueError):
        return None
    except Exception:  # noqa: BLE001  what is tried may not fit the code around it, in any way
        return False
    is_same = not math.isfinite(loss) or math.isclose(float(value.detach()), loss, rel_tol=tolerance, abs_tol=tolerance)
    return is_same and any(is_good(Magnitude.of([gradient])) for gradient in given)


def _lines_to_try(
    subject: Subject, forward: ForwardTrace, backward: BackwardTrace
) -> Iterator[tuple[CodeLocation, str | None, list[str]]]:
    """List lines, the rewritten line if there is one, and the parameters that should get a gradient."""
    for cut, names in _detachments(subject, forward):
        yield cut.location, _suggested_line(cut), names
    for use in forward.log.outside_uses:
        names = [name for name in _without_gradient(subject, forward) if use.lost & forward.bit(name)]
        for cut in ([forward.log.detachments[index] for index in use.before] or [use]) if names else ():
            yield cut.location, _suggested_line(cut), names
    for write in writes_at_fault(backward.error, forward.log.writes) or ():
        yield write.operation.location, line_out_of_place(write.operation.location.code), list(subject.trainable)


def _without_gradient(subject: Subject, forward: ForwardTrace) -> list[str]:
    return [name for name in subject.trainable if not forward.reached & forward.bit(name)]


def _detachments(subject: Subject, forward: ForwardTrace) -> Iterator[tuple[Detachment, list[str]]]:
    """List the detachments, each with the parameters that it leaves without any gradient."""
    for index in sorted(forward.flow.detachments):
        cut = forward.log.detachments[index]
        names = [name for name in _without_gradient(subject, forward) if cut.lost & forward.bit(name)]
        if names:
            yield cut, names


def _suggested_line(cut: Detachment) -> str | None:
    code = cut.location.code
    if ".sample(" in code:
        return code.replace(".sample(", ".rsample(")
    if cut.name == "grad":
        return line_with_keyword(code, "grad", "create_graph", value=True)
    if cut.name == "CheckpointFunction.apply":
        return line_with_keyword(code, "checkpoint", "use_reentrant", value=False)
    return line_without_wrapper(code) if cut.name in WRAPPING else line_without_detachment(code)


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


_REMOVED = ("detach", "data")
_FAULTS: tuple[tuple[IsGood, IsGood, Any], ...] = (
    (lambda m: not m.is_finite, lambda m: m.is_finite and m.largest is not None, SINGULAR),
    (lambda m: m.is_zero, lambda m: not m.is_zero, STEPS),
)
"""Faults of gradients: when a gradient has one, when it has it no longer, and the operations with a safe function."""


def _operations_to_try(
    subject: Subject, forward: ForwardTrace, backward: BackwardTrace
) -> Iterator[tuple[CodeLocation, str, list[str], IsGood, CodeLocation | None]]:
    """List operations at fault: line, bare name, parameters to help, and when these are helped.

    The last element is the line that switches gradients off around the operation, where that is the fault.
    """
    for name, magnitude in backward.magnitudes.items():
        for is_faulty, is_good, known in _FAULTS:
            if not is_faulty(magnitude):
                continue
            if known is SINGULAR and "where" in forward.log.names:
                continue
            for operation in forward.operations(backward.origins(subject.parameters[name], is_faulty)):
                if operation.bare_name.strip("_") in known:
                    yield operation.location, operation.bare_name, [name], is_good, None
    for cut, names in _detachments(subject, forward):
        switch = cut.switch if cut.by_mode and not cut.by_library else None
        if switch is not None or cut.name in _REMOVED:
            yield cut.location, cut.name, names, lambda magnitude: not magnitude.is_zero, switch


@contextlib.contextmanager
def _replaced_operation(subject: Subject, line: CodeLocation, bare: str, *, is_switch: bool) -> Iterator[None]:
    """Run a safe function in place of an operation on one line, or leave gradients switched on there.

    Raises:
        LookupError: the operation did not run.
    """
    mode = _Replacing(Locator(subject.model), line, bare.strip("_"), is_switch=is_switch)
    with torch.enable_grad(), mode:
        yield
    if not mode.n_replaced:
        raise LookupError(bare)


class _Replacing(TorchFunctionMode):
    def __init__(self, locator: Locator, line: CodeLocation, bare: str, *, is_switch: bool) -> None:
        super().__init__()
        self.n_replaced = 0
        self._locator, self._line, self._bare, self._is_switch = locator, line, bare, is_switch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run one function."""
        replacement = self._replacement(plain_name(func), args)
        if replacement is not None:
            here = self._locator.here()
            if (here.file, here.line) == (self._line.file, self._line.line):
                self.n_replaced += 1
                return replacement(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _replacement(self, name: str, args: Any) -> Callable[..., Any] | None:  # noqa: ANN401  torch's own
        bare = name.strip("_")
        if self._is_switch:
            return (lambda _: None) if name == "_set_grad_enabled" and not args[0] else None
        if bare != self._bare:
            return None
        if bare in _REMOVED:
            return lambda tensor: tensor
        return straight_through(bare).function if bare in STEPS else getattr(SINGULAR.get(bare), "function", None)
