"""Whether the gradient of one input of a hand-written Function is right, and how it is wrong if not."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from deconv_cli.gradients.finite_differences.directional import (
    Comparison,
    Outcome,
    compare_along,
    is_one_factor,
)
from deconv_cli.gradients.finite_differences.scalar_function import Direction, ScalarFunction, TensorGradient
from deconv_cli.gradients.finite_differences.search import ELEMENT_TOLERANCE, compare_tensors, unravel
from deconv_cli.gradients.function_trial import FunctionTrial


@dataclass(frozen=True)
class GradientError:
    """How the gradient of one input is wrong, compared with `reference` at the worst element and counted over all.

    Attributes:
        rows: first and last wrong row of the first axis, whose length is `n_rows`.
        surrogate: what proves that the gradient stands in the place of a derivative that is zero; empty without proof.
    """

    comparison: Comparison
    rows: tuple[int, int]
    n_rows: int
    reference: str
    surrogate: str = ""

    @property
    def block(self) -> tuple[int, int] | None:
        """Which of three or four stacked blocks, as those of gates, holds all wrong rows; None where no one does."""
        first, last = self.rows
        for n_blocks in (4, 3):
            size = self.n_rows // n_blocks
            if size > 1 and self.n_rows % n_blocks == 0 and first // size == last // size:
                return first // size, n_blocks
        return None

    @property
    def is_one_factor(self) -> bool:
        """Whether all wrong elements are off by one and the same factor."""
        ratio = self.comparison.ratio
        return ratio is not None and is_one_factor(ratio, self.comparison.ratio_range)


def compare_input(trial: FunctionTrial, index: int, deadline: float = math.inf) -> GradientError | None:
    """Check the gradient of one of the tensors of a trial; None where it is right.

    Where two ways of computing it differ, finite differences decide.

    Raises:
        ValueError: backward gives a gradient of another shape.
    """
    function = ScalarFunction(trial.value, deadline=deadline)
    tensor, given = list(trial.tensors.values())[index], trial.given[index]
    expected = trial.expected[index] if trial.expected is not None else None
    hand = torch.zeros_like(tensor) if given is None else given.detach().to(tensor.dtype)
    if hand.shape != tensor.shape:
        raise ValueError("backward gives a gradient of another shape")
    moved = TensorGradient("input", tensor, hand)
    if expected is not None:
        gap = hand - expected
        size = torch.maximum(hand.abs(), expected.abs())
        off = gap.abs() > 1e-8 * size + 1e-9 * float(expected.abs().max()) + 1e-300
        if not bool(off.any()):
            return None
        direction = (gap / gap.abs().max()).reshape(-1) * moved.scale
        by_autograd = TensorGradient("input", tensor, expected)
        outcome = compare_along(function, [Direction(moved, 0, direction)]).outcome
        if outcome in (Outcome.AGREES, Outcome.KINK):
            return None
        if compare_along(function, [Direction(by_autograd, 0, direction)]).outcome is Outcome.AGREES:
            return replace(_error_by_autograd(hand, expected, off), surrogate=trial.proof_of_surrogate(index))
    found = compare_tensors(function, [moved])["input"]
    if found is None or found.outcome is not Outcome.DIFFERS:
        return None
    return replace(_error_by_differences(found, tensor), surrogate=trial.proof_of_surrogate(index))


def _error_by_differences(found: Comparison, tensor: torch.Tensor) -> GradientError:
    """Describe an error that finite differences found at one element and looked for at a few others."""
    is_everywhere = found.n_wrong > 1
    n_wrong = round(tensor.numel() * found.n_wrong / max(found.n_tried, 1)) if is_everywhere else 1
    row = found.element[0] if found.element else 0
    return GradientError(
        replace(found, n_wrong=n_wrong, n_tried=tensor.numel()),
        rows=(0, tensor.shape[0] - 1) if is_everywhere and tensor.ndim else (row, row),
        n_rows=tensor.shape[0] if tensor.ndim else 1,
        reference="finite differences",
    )


def _error_by_autograd(hand: torch.Tensor, expected: torch.Tensor, off: torch.Tensor) -> GradientError:
    """Describe an error that autograd of the same forward shows at every element."""
    gap = (hand - expected).abs()
    relative = gap / torch.maximum(hand.abs(), expected.abs()).clamp_min(1e-300)
    clear = off & (relative > ELEMENT_TOLERANCE)
    chosen = clear if bool(clear.any()) else off
    element = unravel(int(torch.where(chosen, gap, -1.0).argmax()), hand.shape)
    ratios = (hand / expected)[chosen & (expected != 0)]
    rows = chosen.reshape(chosen.shape[0], -1).any(dim=1).nonzero().flatten() if chosen.ndim else torch.zeros(1)
    comparison = Comparison(
        Outcome.DIFFERS,
        autograd=float(hand[element]),
        numeric=float(expected[element]),
        error_bar=0.0,
        resolution=ELEMENT_TOLERANCE,
        element=element,
        n_wrong=int(chosen.sum()),
        n_tried=hand.numel(),
        ratio=float(ratios.median()) if ratios.numel() else None,
        ratio_range=(float(ratios.min()), float(ratios.max())) if ratios.numel() else None,
    )
    return GradientError(
        comparison,
        rows=(int(rows[0]), int(rows[-1])),
        n_rows=hand.shape[0] if hand.ndim else 1,
        reference="autograd of the same forward",
    )
