"""Pairs of images as what a kernel is learned from: the module, its loss, and the stripes of outputs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from deconv_cli.errors import GradientFaultError, UsageError
from deconv_cli.gradients.checker import check_gradients
from deconv_cli.kernels.fit.pair_equations import Pair, Ridge, gather, misfit, solve_ridge
from deconv_cli.kernels.learning.learned_kernel import LearnedKernel, convolve
from deconv_cli.kernels.learning.loss_functions import (
    Loss,
    Objective,
    Slopes,
    Stripe,
    cut_stripes,
    find_loss,
    mean_loss,
    measure_slopes,
    squared,
)
from deconv_cli.operators.boundaries.rule import as_rule
from deconv_cli.vocabulary import Size
from deconv_cli.workflows.fit_kernel import penalty_gram
from deconv_cli.workflows.image_pairs import check_memory, checked_size, group_pairs
from deconv_cli.workflows.learning_settings import LearningSettings

CHECK_BUDGET = 10.0
"""Seconds for finite differences."""
N_CHANGES = 5
"""Steps toward the least squares that resemble the loss."""
MAX_WEIGHT = 1e6
"""Of an output, in that of the median; and its inverse is the least one."""
LEAST_WEIGHT = 1e-13
"""λ of the coordinates, which have to exist for images that leave some taps open too."""


@dataclass(frozen=True, eq=False)
class LearningProblem:
    """What is learned, and from what.

    Attributes:
        size: of the kernels.
        model: the kernels, at the start those that leave images as they are.
        objective: what is made small.
        training: stripes to learn from.
        held_out: stripes that are not.
        lam: λ of each group.
    """

    size: Size
    model: LearnedKernel
    objective: Objective
    training: list[Stripe]
    held_out: list[Stripe]
    lam: tuple[float, ...]

    @classmethod
    def of(cls, pairs: Sequence[tuple[Tensor, Tensor]], size: Size, settings: LearningSettings) -> LearningProblem:
        """Lay out pairs, and check the gradient of the loss.

        Raises:
            GradientFaultError: it is wrong, or does not arrive.
            UsageError: a loss that does not grow with the distance to the data.
        """
        loss, size = find_loss(settings.loss), checked_size(size)
        groups = group_pairs(pairs, size, settings.channels, as_rule(settings.boundary))
        n_inputs, n_outputs = groups[0][0].wide.shape[0], groups[0][0].y.shape[0]
        check_memory(len(groups) * n_inputs * math.prod(size), size)
        start = LeastSquares.of(groups, size, settings)
        training, held_out = cut_stripes(groups, size)
        check_loss(start.model(size, settings), loss, training[0])
        bend = 2.0
        if loss is not squared:
            for _ in range(N_CHANGES):
                changed, bend = _as_squared(groups, start.columns, loss, size)
                start = LeastSquares.of(changed, size, settings)
        objective = Objective(loss, bend, len(groups) * n_outputs)
        return cls(size, start.model(size, settings), objective, training, held_out, start.lam)

    @property
    def n_data(self) -> int:
        """Outputs that are used."""
        return sum(stripe.y.numel() for stripe in self.training + self.held_out)

    def residual(self, columns: Tensor, stripes: Sequence[Stripe]) -> float:
        """Compute ‖y − Xk‖ / ‖y‖ over stripes, for taps `(G, N, C_out)`; NaN where there are none."""
        with torch.no_grad():
            rest = sum(
                float((stripe.y - convolve(stripe.wide, columns, self.size)).square().sum()) for stripe in stripes
            )
        square = sum(float(stripe.y.square().sum()) for stripe in stripes)
        return math.sqrt(rest / max(square, 1e-300)) if stripes else math.nan

    def fingerprint(self, settings: LearningSettings) -> str:
        """Give a name to the data and the settings, but for how long is learned."""
        choices = {name: value for name, value in settings.describe().items() if name not in ("max_epochs", "patience")}
        found = hashlib.sha256(json.dumps([choices, self.size]).encode())
        for stripe in (*self.training, *self.held_out):
            for part in (stripe.wide, stripe.y):
                found.update(part.contiguous().numpy().data)
        return found.hexdigest()


def check_loss(model: LearnedKernel, loss: Loss, stripe: Stripe) -> None:
    """Refuse a loss whose gradient is wrong, or does not arrive at the taps.

    Raises:
        GradientFaultError: with what is found, and where.
    """
    report = check_gradients(
        model,
        stripe.wide,
        loss=lambda prediction, target: mean_loss(loss, prediction, target),
        target=stripe.y,
        batch_axis=None,
        budget=CHECK_BUDGET,
    )
    for fault in report.faults():
        causes = "; ".join(
            f"{c.operation} at {c.location}: {c.why.rstrip('.')}; write {c.suggestion}" for c in fault.causes
        )
        detail = "; ".join(found.detail for found in report.parameters if found.detail)
        raise GradientFaultError(
            f"the gradient of the loss should arrive at the taps and be right, but is {fault.verdict}"
            + "".join(f": {part}" for part in (detail, causes) if part)
            + "."
        )


@dataclass(frozen=True, eq=False)
class LeastSquares:
    """The least squares of pairs, of which learning takes λ and the coordinates, but not the solution.

    Attributes:
        ridges: of each group.
        gram: XᵀX of each group, shape `(G, N, N)`.
        penalty: LᵀL, shape `(N, N)`.
        n_data: rows of X.
    """

    ridges: list[Ridge]
    gram: Tensor
    penalty: Tensor
    n_data: int

    @classmethod
    def of(cls, groups: Sequence[Sequence[Pair]], size: Size, settings: LearningSettings) -> LeastSquares:
        """Solve for each group."""
        penalty = penalty_gram(settings.penalty, size, groups[0][0].wide.shape[0])
        everything = [gather(group, size)[0] for group in groups]
        ridges = [
            solve_ridge(equations, penalty, partial(misfit, group, size), settings.lam)
            for equations, group in zip(everything, groups, strict=True)
        ]
        return cls(ridges, torch.stack([each.gram for each in everything]), penalty, everything[0].n_data)

    @property
    def lam(self) -> tuple[float, ...]:
        """λ of each group."""
        return tuple(ridge.lam for ridge in self.ridges)

    @property
    def columns(self) -> Tensor:
        """The taps, shape `(G, N, C_out)`."""
        return torch.stack([ridge.taps for ridge in self.ridges])

    def model(self, size: Size, settings: LearningSettings) -> LearnedKernel:
        """Make the kernels that will be learned."""
        weights = torch.tensor([[[ridge.weight]] for ridge in self.ridges], dtype=torch.float64)
        least = torch.tensor([[[max(1.0, LEAST_WEIGHT / ridge.lam)]] for ridge in self.ridges], dtype=torch.float64)
        penalty = weights * self.penalty / self.n_data
        metric = self.gram / self.n_data + least * penalty
        return LearnedKernel(metric, penalty, self.columns.shape[-1], size, settings.constraint)


def _as_squared(
    groups: Sequence[Sequence[Pair]], columns: Tensor, loss: Loss, size: Size
) -> tuple[list[list[Pair]], float]:
    """Replace data by those for which the weighted square has the slope that the loss has for the true ones.

    Source: Huber, Robust Statistics, 1981, section 7.8, on modified residuals; the weights are those of McCullagh and
    Nelder, Generalized Linear Models, 1989, section 2.5, as far as they depend on the prediction alone.

    Args:
        groups: the pairs of each kernel.
        columns: taps near the minimum, shape `(G, N, C_out)`.
        loss: of a prediction and the data.
        size: of the kernels.

    Returns:
        The pairs with other data and weights, and the second derivative of the loss in the middle of the data.
    """
    predicted = [
        [convolve(pair.wide[None], taps[None], size)[0] for pair in group]
        for group, taps in zip(groups, columns, strict=True)
    ]
    slopes = [
        [measure_slopes(loss, there, pair.y) for there, pair in zip(*each, strict=True)]
        for each in zip(predicted, groups, strict=True)
    ]
    every = [found for group in slopes for found in group]
    middle = _median([found.bend.mean(0) for found in every])
    bend = _median([found.steepness / _weights(found, middle) for found in every])
    if not 0 < bend < math.inf:
        raise UsageError(
            "a loss should grow with the distance of the prediction to the data, but this one does not near the least "
            "squares; give one that does."
        )
    changed = [
        [
            _reweighted(pair, there, found, bend, _weights(found, middle))
            for pair, there, found in zip(*each, strict=True)
        ]
        for each in zip(groups, predicted, slopes, strict=True)
    ]
    return changed, bend


def _median(parts: list[Tensor]) -> float:
    return float(torch.cat([part.flatten() for part in parts]).median())


def _weights(found: Slopes, middle: float) -> Tensor:
    """Give the weights of outputs, shape `(*size)`, by how the loss bends there; 1 for the bend in the middle."""
    return (found.bend.mean(0) / middle).nan_to_num(1.0).clamp(1 / MAX_WEIGHT, MAX_WEIGHT)


def _reweighted(pair: Pair, predicted: Tensor, found: Slopes, bend: float, weights: Tensor) -> Pair:
    """Replace data by those for which the weighted square has the slope of the loss."""
    step, distance = found.slope / (bend * weights), (predicted - pair.y).abs()
    # Where a prediction is impossible the loss is far steeper than at the data, and the step would lead far beyond.
    step = step.abs().minimum(distance.clamp_min(step.abs().median())).copysign(step)
    return replace(pair, y=predicted - step, weights=weights)
