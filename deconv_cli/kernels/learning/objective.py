"""What a learned kernel makes small: the mean loss over stripes of outputs, beside the penalty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.kernels.fit.pair_equations import Pair
from deconv_cli.kernels.learning.learned_kernel import LearnedKernel
from deconv_cli.kernels.learning.loss_functions import Loss, mean_loss
from deconv_cli.vocabulary import Size

NUDGE = 1e-3
"""Share of the data by which predictions are moved to see how steep a loss is where nothing is left over."""
STEP = 1e-6
"""The same to see how it bends there."""


@dataclass(frozen=True, eq=False)
class Stripe:
    """Some rows of outputs of all groups: `wide` of shape `(1, G·C_in, *(n + k − 1))`, `y` of `(1, G·C_out, *n)`."""

    wide: Tensor
    y: Tensor


def cut_stripes(groups: Sequence[Sequence[Pair]], size: Size) -> tuple[list[Stripe], list[Stripe]]:
    """Cut pairs, in the same order for each group, into the stripes to learn from and those that are held out."""
    parts: tuple[list[Stripe], list[Stripe]] = ([], [])
    for pairs in zip(*groups, strict=True):
        for found in zip(*(pair.stripes(size) for pair in pairs), strict=True):
            stripe = Stripe(torch.cat([p.wide for p, _ in found])[None], torch.cat([p.y for p, _ in found])[None])
            parts[found[0][1]].append(stripe)
    return parts


@dataclass(frozen=True)
class Objective:
    """The loss in units in which it bends like half the square.

    Attributes:
        loss: of a prediction and data.
        bend: its second derivative in the middle of the data.
        n_kernels: G·C_out, over which the mean of the loss is taken too.
    """

    loss: Loss
    bend: float
    n_kernels: int

    def loss_over(self, model: LearnedKernel, stripes: Sequence[Stripe]) -> float:
        """Average the loss over stripes, in its own units."""
        with torch.no_grad():
            total = sum(float(mean_loss(self.loss, model(s.wide), s.y)) * s.y.numel() for s in stripes)
        return total / sum(s.y.numel() for s in stripes)

    def backward(self, model: LearnedKernel, stripes: Sequence[Stripe]) -> float:
        """Compute the value over stripes, and add its gradient to that of the parameters; a piece at a time."""
        n_samples = sum(s.y.numel() for s in stripes)
        total = 0.0
        for stripe in stripes:
            loss = mean_loss(self.loss, model(stripe.wide), stripe.y)
            share = loss * (stripe.y.numel() / n_samples * self.n_kernels / self.bend)
            share.backward()
            total += float(share.detach())
        roughness = model.roughness()
        roughness.backward()
        return total + float(roughness.detach())


@dataclass(frozen=True, eq=False)
class Slopes:
    """A loss near its minimum, sample by sample.

    Attributes:
        slope: by the prediction.
        steepness: the slope in parts of the distance to the data, which is the second derivative of a parabola.
        bend: the second derivative where prediction and data agree, but for a factor that is the same for all samples.
    """

    slope: Tensor
    steepness: Tensor
    bend: Tensor


def measure_slopes(loss: Loss, prediction: Tensor, target: Tensor) -> Slopes:
    """Measure how a loss slopes and bends at every sample.

    Args:
        loss: of a prediction and data.
        prediction: near the data, where the loss will be minimized.
        target: the data, of the same shape.
    """
    size = target.square().mean().sqrt()
    step = STEP * size
    distance = prediction - target
    distance = torch.where(distance.abs() < NUDGE * size, NUDGE * size, distance)
    return Slopes(
        _slope(loss, prediction, target),
        _slope(loss, target + distance, target) / distance,
        (_slope(loss, prediction + step, prediction) - _slope(loss, prediction - step, prediction)) / (2 * step),
    )


def _slope(loss: Loss, prediction: Tensor, target: Tensor) -> Tensor:
    prediction = prediction.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(mean_loss(loss, prediction, target) * target.numel(), prediction)
    return slope
