"""Replace one operation by a safe one, and try whether that gives a gradient before it is suggested."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from deconv_cli.gradients.subject import Subject, as_scalar
from deconv_cli.gradients.tracing.backward_trace import BackwardTrace, Magnitude
from deconv_cli.gradients.tracing.code_location import CodeLocation, Locator
from deconv_cli.gradients.tracing.forward_trace import ForwardTrace, Operation
from deconv_cli.gradients.tracing.operations import STEPS, plain_name

_SMALL = 1e-12

_INSIDE = 1 - 1e-7

_LARGEST_EXPONENT = 80.0


@dataclass(frozen=True)
class Cure:
    """A suggestion, and what it does to the arguments of the operation."""

    text: str
    function: Callable[..., torch.Tensor]


def _norm(x: torch.Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False) -> torch.Tensor:  # noqa: ANN401
    if p not in (2, 2.0, "fro", None):
        raise ValueError("only the Euclidean norm is cured so")
    return torch.sqrt(x.square().sum(dim=dim, keepdim=keepdim) + _SMALL)


_NORM = Cure("torch.sqrt(x.square().sum() + 1e-12), with the dim of the norm", _norm)

_QUOTIENT = Cure("divide by (x + 1e-12), or select with torch.where before dividing", lambda x, y: x / (y + _SMALL))

SINGULAR: dict[str, Cure] = {
    "sqrt": Cure(
        "torch.sqrt(x + 1e-12), or torch.where around the input and not around the result",
        lambda x: torch.sqrt(x + _SMALL),
    ),
    "norm": _NORM,
    "vector_norm": _NORM,
    "log": Cure(
        "torch.log(x.clamp_min(1e-12)); of a softmax F.log_softmax, and of a sigmoid F.logsigmoid in the place of both",
        lambda x: torch.log(x.clamp_min(_SMALL)),
    ),
    "div": _QUOTIENT,
    "truediv": _QUOTIENT,
    "pow": Cure("keep the base above zero: x.clamp_min(0) + 1e-12", lambda x, p: torch.pow(x.clamp_min(0) + _SMALL, p)),
    "acos": Cure("clamp the input to (-1 + 1e-7, 1 - 1e-7)", lambda x: torch.acos(x.clamp(-_INSIDE, _INSIDE))),
    "asin": Cure("clamp the input to (-1 + 1e-7, 1 - 1e-7)", lambda x: torch.asin(x.clamp(-_INSIDE, _INSIDE))),
    "exp": Cure(
        "torch.exp(x.clamp_max(80.0)), or torch.logsumexp where a logarithm follows",
        lambda x: torch.exp(x.clamp_max(_LARGEST_EXPONENT)),
    ),
    "std": Cure(
        "torch.sqrt(x.var() + 1e-12), with the dim of std",
        lambda x, *args, **keywords: torch.sqrt(x.var(*args, **keywords) + _SMALL),
    ),
}
"""For operations with an infinite slope somewhere, by their bare names."""

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
"""For operations that give NaN or infinity for reasons that no change of the line itself mends, by bare names."""


def straight_through(bare: str) -> Cure:
    """Write a step so that its gradient passes as if it were not there; its value stays."""
    step = getattr(torch, bare, None)

    def through(x: torch.Tensor) -> torch.Tensor:
        if step is None:
            raise ValueError(f"torch has no {bare}")
        return x + (step(x) - x).detach()

    return Cure(f"for a straight-through gradient: x + (torch.{bare}(x) - x).detach()", through)


def harmless_input(bare: str) -> float:
    """Find an input at which a function of torch has a finite value and slope, for where it is not selected."""
    function = getattr(torch, bare, torch.exp)
    for candidate in (1.0, 0.0, 0.5):
        with contextlib.suppress(Exception):
            x = torch.tensor(candidate, requires_grad=True)
            value = function(x)
            (slope,) = torch.autograd.grad(value, x)
            if bool(value.isfinite()) and bool(slope.isfinite()):
                return candidate
    return 1.0


_MAX_TRIED = 4

_SAME = 1e-3
"""Change of the loss, relative or beside one, that a cure may make: a small number under a root is no other loss."""

IsGood = Callable[[Magnitude], bool]


@dataclass(frozen=True, eq=False)
class _Candidate:
    """An operation at fault that has a cure: the parameters to be cured, and when one is.

    `switch` is the line that switches gradients off around it, where that is the fault.
    """

    operation: Operation
    names: list[str]
    is_good: IsGood
    switch: CodeLocation | None = None


def find_failing_cures(subject: Subject, forward: ForwardTrace, backward: BackwardTrace | None) -> frozenset[str]:
    """List the lines where what would be suggested changes the loss, or leaves the gradients as they are."""
    failing: set[str] = set()
    tried: set[tuple[str, str]] = set()
    loss = float(forward.loss.detach())
    for candidate in (*_origins(subject, forward, backward), *_detachments(subject, forward)):
        line = str(candidate.operation.location)
        key = line, candidate.operation.bare_name
        if key not in tried and len(tried) < _MAX_TRIED and candidate.operation.location.file:
            tried.add(key)
            failing |= {line} if _is_cured(subject, candidate, loss) is False else set()
    return frozenset(failing)


_FAULTS: tuple[tuple[IsGood, IsGood, Any], ...] = (
    (lambda m: not m.is_finite, lambda m: m.is_finite and m.largest is not None, SINGULAR),
    (lambda m: m.is_zero, lambda m: not m.is_zero, STEPS),
)
"""Faults of gradients: when there is one, when it is cured, and which operations have a cure for it."""


def _origins(subject: Subject, forward: ForwardTrace, backward: BackwardTrace | None) -> Iterator[_Candidate]:
    """List the operations at which gradients become zero, NaN or infinite."""
    has_branch = "where" in forward.log.names
    if backward is None:
        return
    for name, gradient in backward.gradients.items():
        for is_faulty, is_good, known in _FAULTS:
            if gradient is None or not is_faulty(Magnitude.of([gradient])) or (known is SINGULAR and has_branch):
                continue
            for node in backward.origins(subject.parameters[name], is_faulty):
                operation = Operation(forward.graph.label_of(node), forward.graph.location_of(node))
                if operation.bare_name.strip("_") in known:
                    yield _Candidate(operation, [name], is_good)


def _detachments(subject: Subject, forward: ForwardTrace) -> Iterator[_Candidate]:
    """List what cuts off parameters that nothing else gives a gradient."""
    without = {name: forward.bit(name) for name in subject.trainable if not forward.reached & forward.bit(name)}
    for index in sorted(forward.flow.detachments):
        found = forward.log.detachments[index]
        names = [name for name, bit in without.items() if found.lost & bit]
        is_switched = found.by_mode and found.switch is not None and not found.by_library
        if names and (is_switched or found.name in _TAKEN_OUT):
            operation = Operation(found.label, found.location)
            switch = found.switch if is_switched else None
            yield _Candidate(operation, names, lambda magnitude: not magnitude.is_zero, switch)


_TAKEN_OUT = ("detach", "data")


def _is_cured(subject: Subject, candidate: _Candidate, loss: float) -> bool | None:
    """Return whether gradients are good without the loss being another; None where the cure cannot be tried."""
    mode = _Cured(subject, candidate)
    try:
        with torch.enable_grad(), mode:
            value = as_scalar(subject.run()[1])
        if not mode.n_changed:
            return None
        wanted = [subject.parameters[name] for name in candidate.names]
        given = torch.autograd.grad(value, wanted, allow_unused=True) if value.requires_grad else [None]
    except ValueError:
        return None
    except Exception:  # noqa: BLE001  what is put in the place of an operation may fail there in any way
        return False
    is_same = not math.isfinite(loss) or math.isclose(float(value.detach()), loss, rel_tol=_SAME, abs_tol=_SAME)
    return is_same and any(candidate.is_good(Magnitude.of([gradient])) for gradient in given)


class _Cured(TorchFunctionMode):
    """Runs another function in the place of an operation on one line, or leaves gradients switched on there."""

    def __init__(self, subject: Subject, candidate: _Candidate) -> None:
        super().__init__()
        self.n_changed = 0
        self._switch = candidate.switch
        self._bare = candidate.operation.bare_name.strip("_")
        self._line = candidate.switch or candidate.operation.location
        self._locator = Locator(subject.model)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run one function."""
        replaced = self._replacement(plain_name(func), args)
        if replaced is not None:
            here = self._locator.here()
            if (here.file, here.line) == (self._line.file, self._line.line):
                self.n_changed += 1
                return replaced(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _replacement(self, name: str, args: Any) -> Callable[..., Any] | None:  # noqa: ANN401  torch's own
        if self._switch is not None:
            return (lambda _: None) if name == "_set_grad_enabled" and not args[0] else None
        bare = name.strip("_")
        if bare != self._bare:
            return None
        if bare in _TAKEN_OUT:
            return lambda tensor: tensor
        return straight_through(bare).function if bare in STEPS else getattr(SINGULAR.get(bare), "function", None)
