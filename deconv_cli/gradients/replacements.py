"""What to write instead of an operation without a finite or a useful slope: a safe function, or advice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

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


def harmless_input(bare: str) -> float:
    """Find an input with a finite value and slope, for elements that torch.where does not select."""
    function = getattr(torch, bare, torch.exp)
    for candidate in (1.0, 0.0, 0.5):
        with contextlib.suppress(Exception):
            x = torch.tensor(candidate, requires_grad=True)
            value = function(x)
            (slope,) = torch.autograd.grad(value, x)
            if bool(value.isfinite()) and bool(slope.isfinite()):
                return candidate
    return 1.0
