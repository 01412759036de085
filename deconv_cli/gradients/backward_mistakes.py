"""Which mistake a hand-written backward makes: told apart by what it gives for other incoming gradients and batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch

Tensors = Sequence[torch.Tensor]
Gradients = Sequence[torch.Tensor | None]


class Mistake(Enum):
    """A mistake that is made in practice: why the gradient is wrong, and what to write; both have a place for names."""

    WRITES_TO_SAVED = (
        "{function} writes to the tensors that it reads, so that a second call, and all that reads them, go wrong.",
        "work on a copy: tensor = tensor.clone()",
    )
    IGNORES_INCOMING = (
        "the gradient for {name} does not depend on the incoming gradient, as if this were the last step of all.",
        "multiply by the incoming gradient: the chain rule wants it",
    )
    NOT_LINEAR = (
        "the gradient for {name} is not linear in the incoming gradient, which the chain rule wants; something in "
        "{function} clips or thresholds it, or adds to it.",
        "let the incoming gradient only be multiplied and summed; clip with torch.nn.utils.clip_grad_norm_ afterwards",
    )
    OTHER_SIGN = ("the gradient for {name} has the wrong sign.", "negate the gradient for {name}")
    SWAPPED = (
        "{function} returns for {name} what belongs to another input.",
        "return the gradients in the order of the arguments of forward",
    )
    TRANSPOSED = ("the gradient for {name} is transposed.", "transpose the gradient for {name}")
    MEAN_FOR_SUM = (
        "the gradient for {name} is the mean over {n} samples, where the chain rule wants their sum.",
        "sum over the samples; the loss holds the factor of its mean already",
    )
    SUM_FOR_MEAN = (
        "the gradient for {name} misses the factor of a mean over {n} numbers that forward takes.",
        "divide the gradient for {name} by that number",
    )


@dataclass(frozen=True)
class Trial:
    """A hand-written Function as it was called.

    Attributes:
        differentiate: gives the gradients for incoming gradients, on fresh copies of the inputs; also whether the
            inputs were written to.
        tensors: the inputs that are differentiated by.
        weights: the incoming gradients.
        given, expected: the gradients that backward gives, and that autograd of the same forward gives.
    """

    differentiate: Callable[[Tensors], tuple[Gradients, bool]]
    tensors: Tensors
    weights: Tensors
    given: Gradients
    expected: Gradients | None


def find_mistake(trial: Trial, index: int) -> tuple[Mistake, int] | None:
    """Tell which mistake makes the gradient of one input wrong, with the number of samples where that matters."""
    hand = trial.given[index]
    if hand is None:
        return None
    doubled, has_written = trial.differentiate([2 * weight for weight in trial.weights])
    if has_written:
        return Mistake.WRITES_TO_SAVED, 0
    twice = doubled[index]
    if twice is not None and not _same(twice, 2 * hand):
        negated = trial.differentiate([-weight for weight in trial.weights])[0][index]
        is_ignored = negated is not None and _same(negated, hand)
        return (Mistake.IGNORES_INCOMING if is_ignored else Mistake.NOT_LINEAR), 0
    expected = trial.expected[index] if trial.expected is not None else None
    return None if expected is None else _compare(trial, hand, expected, index)


def _compare(trial: Trial, hand: torch.Tensor, expected: torch.Tensor, index: int) -> tuple[Mistake, int] | None:
    """Compare a gradient with the right one, and with the right ones of other inputs."""
    if _same(hand, -expected):
        return Mistake.OTHER_SIGN, 0
    others = [other for n, other in enumerate(trial.expected or ()) if n != index and other is not None]
    if any(other.shape == hand.shape and _same(hand, other) for other in others):
        return Mistake.SWAPPED, 0
    if hand.ndim >= 2 and hand.shape[-1] == hand.shape[-2] and _same(hand, expected.transpose(-1, -2)):
        return Mistake.TRANSPOSED, 0
    for n in sorted({size for tensor in (*trial.tensors, *trial.weights) for size in (*tensor.shape, tensor.numel())}):
        if n > 1 and _same(hand * n, expected):
            return Mistake.MEAN_FOR_SUM, n
        if n > 1 and _same(hand, expected * n):
            return Mistake.SUM_FOR_MEAN, n
    return None


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    size = torch.maximum(one.abs().max(), other.abs().max())
    return bool(size > 0) and bool((one - other).abs().max() <= 1e-4 * size)
