"""Losses, and the fit of a kernel to pairs of images: by least squares, reweighted for all losses but the square."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from deconv_cli.errors import GradientFaultError, UsageError
from deconv_cli.gradients.checker import check_gradients
from deconv_cli.kernels.pair_equations import (
    Constraint,
    Look,
    Pair,
    PairEquations,
    Ridge,
    gather,
    misfit,
    solve_constrained,
    solve_ridge,
)
from deconv_cli.operators.convolution import CONVOLUTIONS
from deconv_cli.parts import LOSSES
from deconv_cli.vocabulary import Size

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Of a prediction and the data, of one shape: a loss of that shape, or a number that is its mean."""

FAINT = 0.1
"""Counts that are added where the likelihood of counts is computed, which ends at zero."""


def squared(prediction: Tensor, target: Tensor) -> Tensor:
    """Give (p − t)², the loss of white Gaussian noise."""
    return (prediction - target).square()


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Give |p − t|, whose minimum hardly depends on samples that are far off."""
    return (prediction - target).abs()


def huber(prediction: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    """Give ½(p − t)² up to a distance of `delta` in units of the samples, and go on straight beyond.

    Source: Huber, Robust estimation of a location parameter, Annals of Mathematical Statistics 35, 1964.
    """
    return functional.huber_loss(prediction, target, reduction="none", delta=delta)


def poisson(prediction: Tensor, target: Tensor) -> Tensor:
    """Give p − t + t·log(t/p) for means p and counts t with a tenth of a count added to both.

    This is the negative logarithm of the likelihood of the counts, minus its least value. Without the tenth, a pixel
    without counts would almost fix its mean, and its loss would end at zero. Below zero a parabola replaces the
    logarithm.
    """
    counts, means = target.clamp_min(0) + FAINT, prediction.clamp_min(0) + FAINT
    below = prediction.clamp_max(0) / FAINT
    logarithm = means.log() + below - below.square() / 2
    return prediction + FAINT - counts + counts * (counts.log() - logarithm)


def find_loss(words: str | Loss) -> Loss:
    """Give the loss of a name, with its number behind a colon (`huber:2.5`), or the function itself."""
    if not isinstance(words, str):
        return words
    name, colon, text = words.partition(":")
    loss: Loss = LOSSES[name]
    if not colon:
        return loss
    names = list(inspect.signature(loss).parameters)[2:]
    if len(names) != 1:
        raise UsageError(f"loss {name} takes no number, but is '{words}'; write {name}.")
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise UsageError(f"loss {name} takes a positive number, its {names[0]}, but is '{words}'; write {name}:1.")
    return partial(loss, **{names[0]: number})


def mean_loss(loss: Loss, prediction: Tensor, target: Tensor) -> Tensor:
    """Average a loss over the samples.

    A loss must give one number, or one for each sample; another one is a `UsageError`.
    """
    values = loss(prediction, target)
    if not isinstance(values, Tensor) or values.shape not in (prediction.shape, ()):
        found = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise UsageError(
            f"a loss must take a prediction and data, and return a tensor of their shape {tuple(prediction.shape)} or "
            f"a single number, but returns {found}."
        )
    return values.mean()


def slope_of_loss(loss: Loss, prediction: Tensor, target: Tensor) -> Tensor:
    """Differentiate the sum of a loss by the prediction."""
    prediction = prediction.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(mean_loss(loss, prediction, target) * target.numel(), prediction)
    return slope


CHECK_BUDGET = 10.0
"""Seconds for finite differences."""
N_CHOOSING, MAX_ROUNDS, N_HELD_OUT = 5, 60, 2
"""Rounds that choose λ, rounds at most, and further rounds of the kernel without the held-out outputs."""
TOLERANCE = 1e-6
"""Relative change of the predicted images at which the rounds end."""
MAX_HALVINGS = 10
LEAST_LAM = 1e-13
"""Of the steps, so that they exist for images that leave some taps open too."""
MAX_WEIGHT = 1e6
"""Of an output, relative to the median; its inverse is the least one."""
NUDGE, STEP = 1e-3, 1e-6
"""Least distance to the data at which the steepness of a loss is measured, and step for its second derivative, relative
to the size of the data."""

GroupFit: TypeAlias = tuple[Tensor, Tensor, Ridge]
"""Taps `(N, C_out)` of all outputs, taps without the held-out outputs, and the solution without constraints."""


def fit_squares(
    pairs: Sequence[Pair], size: Size, penalty: Tensor, lam: float | None, constraint: Constraint
) -> GroupFit:
    """Fit one kernel to all rows, and another one to the rows that are not held out."""
    everything, kept = gather(pairs, size)
    ridge, taps = _solved(everything, penalty, partial(misfit, pairs, size), lam, constraint)
    _, without = _solved(kept, penalty, partial(misfit, pairs, size, held=False), lam, constraint)
    return taps, without, ridge


def _solved(
    equations: PairEquations,
    penalty: Tensor,
    look: Look,
    lam: float | None,
    constraint: Constraint,
) -> tuple[Ridge, Tensor]:
    """Solve one set of equations; return the solution without constraints too."""
    ridge = solve_ridge(equations, penalty, look, lam)
    if constraint.is_empty:
        return ridge, ridge.taps
    # Around the solution without constraints, whose digits are better than those of the normal equations.
    hessian = equations.gram + ridge.weight * penalty
    columns = [solve_constrained(hessian, hessian @ column, constraint) for column in ridge.taps.T]
    return ridge, torch.stack(columns, 1)


def minimize_loss(
    pairs: Sequence[Pair], size: Size, loss: Loss, penalty: Tensor, lam: float | None, constraint: Constraint
) -> tuple[GroupFit, float]:
    """Minimize the sum of a loss plus the penalty `(N, N)` by weighted least squares.

    In each round the squares have the slope of the loss at the last prediction, and weights by its steepness (Holland
    and Welsch, Robust regression using iteratively reweighted least-squares, Communications in Statistics 6, 1977). A
    step that leads uphill is halved.

    Gives the fit, and the relative change of the predicted images in the last round. The taps without the held-out
    outputs start from the fit and take a few rounds, so they are near their minimum, not at it. A loss that does not
    grow with the distance to the data is a `UsageError`, one with a wrong gradient a `GradientFaultError`.
    """
    everything, _ = gather(pairs, size)
    ridge, taps = _solved(everything, penalty, partial(misfit, pairs, size), lam, constraint)
    _check_loss(taps, loss, next(pairs[0].stripes(size))[0], size)
    for _ in range(N_CHOOSING):
        squares, unit = _as_squares(pairs, ridge.taps, loss, size)
        everything, _ = gather(squares, size)
        ridge, taps = _solved(everything, penalty, partial(misfit, squares, size), lam, constraint)

    def objective(taps: Tensor) -> float:
        losses = [mean_loss(loss, convolve(pair.wide, taps, size), pair.y) * pair.y.numel() for pair in pairs]
        return float(sum(losses) / unit + 0.5 * ridge.weight * (taps * (penalty @ taps)).sum())

    def size_of(step: Tensor) -> float:
        changed, whole = (torch.cat([convolve(p.wide, each, size).flatten() for p in pairs]) for each in (step, taps))
        return float(changed.norm() / whole.norm().clamp_min(1e-300))

    value = objective(taps)
    for _ in range(MAX_ROUNDS):
        before, (everything, kept) = taps, gather(_as_squares(pairs, taps, loss, size, unit)[0], size)
        taps = whole = _improved(before, everything, penalty, ridge, constraint)
        for _ in range(MAX_HALVINGS):
            if (found := objective(taps)) <= value:
                break
            taps = (taps + before) / 2
        else:  # no part of the step leads downhill
            certificate, taps = size_of(whole - before), before
            break
        value = found
        certificate = size_of(taps - before)
        if certificate < TOLERANCE:
            break
    fewer = replace(ridge, weight=ridge.weight * kept.n_data / everything.n_data)
    without = _improved(before, kept, penalty, fewer, constraint)
    for _ in range(N_HELD_OUT):
        kept = gather(_as_squares(pairs, without, loss, size, unit)[0], size)[1]
        without = _improved(without, kept, penalty, fewer, constraint)
    return (taps, without, ridge), certificate


def _improved(taps: Tensor, rest: PairEquations, penalty: Tensor, ridge: Ridge, constraint: Constraint) -> Tensor:
    """Minimize the squares of what taps leave."""
    hessian = rest.gram + max(1.0, LEAST_LAM / ridge.lam) * ridge.weight * penalty
    slope = rest.right - ridge.weight * penalty @ taps
    if constraint.is_empty:
        return taps + torch.linalg.solve(hessian, slope)
    return torch.stack([solve_constrained(hessian, column, constraint) for column in (hessian @ taps + slope).T], 1)


def convolve(wide: Tensor, taps: Tensor, size: Size) -> Tensor:
    """Convolve an image that includes its border, `(C_in, *(size + k − 1))`, with taps `(N, C_out)`."""
    return CONVOLUTIONS[len(size)](wide[None], taps.T.reshape(taps.shape[1], -1, *size))[0]


def _as_squares(
    pairs: Sequence[Pair], taps: Tensor, loss: Loss, size: Size, unit: float | None = None
) -> tuple[list[Pair], float]:
    """Replace data and weights so that the squared error has the slope of the loss at the prediction.

    To choose λ the weights follow the second derivative of the loss, which depends on the prediction alone, so samples
    that are far off do not count as noise (Huber, Robust Statistics, 1981, section 7.8). Under a given unit they follow
    the steepness, and the data are the rests of the prediction. Gives the pairs, and the unit of the loss: its median
    steepness for a weight of 1.
    """
    predicted = [convolve(pair.wide, taps, size) for pair in pairs]
    each, measure = list(zip(predicted, pairs, strict=True)), _steepness if unit else _bend
    shapes = [measure(loss, there, pair.y) for there, pair in each]
    middle = unit or _median(shapes)
    weights = [(shape.mean(0) / middle).nan_to_num(1.0).clamp(1 / MAX_WEIGHT, MAX_WEIGHT) for shape in shapes]
    is_choosing = unit is None
    if unit is None:
        unit = _median([_steepness(loss, at, pair.y) / own for (at, pair), own in zip(each, weights, strict=True)])
    if not 0 < unit < math.inf:
        raise UsageError(
            "a loss must grow with the distance between prediction and data, but this one does not do so near the "
            "least squares; give another loss."
        )
    changed = []
    for (there, pair), own in zip(each, weights, strict=True):
        step, distance = slope_of_loss(loss, there, pair.y) / (unit * own), (there - pair.y).abs()
        # At an impossible prediction a loss may be far steeper than at the data.
        step = step.abs().minimum(distance.clamp_min(step.abs().median())).copysign(step)
        changed.append(replace(pair, y=there - step if is_choosing else -step, weights=own))
    return changed, unit


def _median(parts: Sequence[Tensor]) -> float:
    return float(torch.cat([part.flatten() for part in parts]).median())


def _steepness(loss: Loss, prediction: Tensor, target: Tensor) -> Tensor:
    """Measure the slope of a loss relative to the distance between prediction and data."""
    least, distance = NUDGE * target.square().mean().sqrt(), prediction - target
    distance = torch.where(distance.abs() < least, least, distance)
    return slope_of_loss(loss, target + distance, target) / distance


def _bend(loss: Loss, prediction: Tensor, target: Tensor) -> Tensor:
    """Measure the second derivative of a loss where the data equal the prediction, up to a common factor."""
    step = STEP * target.square().mean().sqrt()
    return slope_of_loss(loss, prediction + step, prediction) - slope_of_loss(loss, prediction - step, prediction)


class _Blur(nn.Module):
    """Convolves an image that includes its border; the taps are its only parameter."""

    def __init__(self, taps: Tensor, size: Size) -> None:
        super().__init__()
        self.taps, self.size = nn.Parameter(taps.clone()), size

    def forward(self, wide: Tensor) -> Tensor:
        """Convolve."""
        return convolve(wide, self.taps, self.size)


def _check_loss(taps: Tensor, loss: Loss, pair: Pair, size: Size) -> None:
    """Refuse, by `GradientFaultError`, a loss whose gradient is wrong, or does not arrive at the taps."""
    report = check_gradients(
        _Blur(taps, size),
        pair.wide,
        loss=lambda prediction, target: mean_loss(loss, prediction, target),
        target=pair.y,
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
