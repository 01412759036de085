"""Kernels fitted to pairs of images under a loss that no equation solves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from deconv_cli.errors import GradientFaultError, UsageError
from deconv_cli.gradients.checker import check_gradients
from deconv_cli.kernels.loss_descent import (
    Constraint,
    KernelModel,
    LossDescent,
    Objective,
    Stripe,
    convolve,
    cut_stripes,
)
from deconv_cli.kernels.loss_functions import Loss, Slopes, mean_loss, measure_slopes
from deconv_cli.kernels.pair_equations import Pair, Ridge, gather, misfit, solve_ridge
from deconv_cli.vocabulary import Size

CHECK_BUDGET = 10.0
"""Seconds for finite differences."""
N_CHANGES = 5
"""Steps toward the least squares that resemble the loss."""
MAX_WEIGHT = 1e6
"""Of an output, in that of the median; and its inverse is the least one."""
LEAST_WEIGHT = 1e-13
"""λ of the coordinates, which have to exist for images that leave some taps open too."""


GroupFit: TypeAlias = tuple[Tensor, Tensor, Ridge]
"""Taps `(N, C_out)` of all outputs, taps without the outputs that are held out, and the least squares behind them."""


def minimize_loss(
    groups: Sequence[Sequence[Pair]], size: Size, loss: Loss, penalty: Tensor, lam: float | None, constraint: Constraint
) -> tuple[list[GroupFit], float]:
    """Minimize the mean loss plus the penalty `(N, N)`, from the least squares that resemble the loss.

    Returns:
        The fit of each group; and the largest distance to the minimum, relative to the predicted images.

    Raises:
        GradientFaultError: the gradient of the loss is wrong, or does not arrive.
        UsageError: a loss that does not grow with the distance to the data.
    """
    training, held_out = cut_stripes(groups, size)
    start = _LeastSquares.of(groups, size, penalty, lam)
    _check_loss(start.model(size, constraint), loss, training[0])
    bend = 2.0
    for _ in range(N_CHANGES):
        changed, bend = _as_squared(groups, start.columns, loss, size)
        start = _LeastSquares.of(changed, size, penalty, lam)
    objective = Objective(loss, bend, len(groups) * start.columns.shape[-1])
    found = []
    for stripes in (training + held_out, training):
        model = start.model(size, constraint)
        certificate = LossDescent(model, objective, stripes).run()
        # Rounding leaves zeros a little below zero.
        columns = model.columns().detach().clamp_min(0.0 if constraint.nonnegative else -math.inf)
        found.append((columns, certificate))
    (columns, certificate), (without, _) = found
    return list(zip(columns, without, start.ridges, strict=True)), certificate


def _check_loss(model: KernelModel, loss: Loss, stripe: Stripe) -> None:
    """Refuse, by `GradientFaultError`, a loss whose gradient is wrong, or does not arrive at the taps."""
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
            f"the gradient of the loss at the taps must be correct, but is {fault.verdict}"
            + "".join(f": {part}" for part in (detail, causes) if part)
            + "."
        )


@dataclass(frozen=True, eq=False)
class _LeastSquares:
    """The least squares of pairs, which give λ, the coordinates and the start.

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
    def of(cls, groups: Sequence[Sequence[Pair]], size: Size, penalty: Tensor, lam: float | None) -> _LeastSquares:
        """Solve for each group."""
        everything = [gather(group, size)[0] for group in groups]
        ridges = [
            solve_ridge(equations, penalty, partial(misfit, group, size), lam)
            for equations, group in zip(everything, groups, strict=True)
        ]
        return cls(ridges, torch.stack([each.gram for each in everything]), penalty, everything[0].n_data)

    @property
    def columns(self) -> Tensor:
        """The taps, shape `(G, N, C_out)`."""
        return torch.stack([ridge.taps for ridge in self.ridges])

    def model(self, size: Size, constraint: Constraint) -> KernelModel:
        """Make the kernels that the descent starts from."""
        weights = torch.tensor([[[ridge.weight]] for ridge in self.ridges], dtype=torch.float64)
        least = torch.tensor([[[max(1.0, LEAST_WEIGHT / ridge.lam)]] for ridge in self.ridges], dtype=torch.float64)
        penalty = weights * self.penalty / self.n_data
        metric = self.gram / self.n_data + least * penalty
        return KernelModel(metric, penalty, self.columns, size, constraint)


def _as_squared(
    groups: Sequence[Sequence[Pair]], columns: Tensor, loss: Loss, size: Size
) -> tuple[list[list[Pair]], float]:
    """Replace the data so that the weighted squared error has the slope of the loss, at taps `(G, N, C_out)`.

    Source: Huber, Robust Statistics, 1981, section 7.8, on modified residuals; the weights are those of McCullagh and
    Nelder, Generalized Linear Models, 1989, section 2.5, as far as they depend on the prediction alone.

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
            "a loss must grow with the distance between prediction and data, but this one does not do so near the "
            "least squares; give another loss."
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
    """Replace the data so that the weighted squared error has the slope of the loss at the prediction."""
    step, distance = found.slope / (bend * weights), (predicted - pair.y).abs()
    # Where a prediction is impossible the loss is far steeper than at the data, and the step would lead far beyond.
    step = step.abs().minimum(distance.clamp_min(step.abs().median())).copysign(step)
    return replace(pair, y=predicted - step, weights=weights)
