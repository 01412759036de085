"""Minimize a loss over the taps of kernels, in coordinates in which the squared error is equally steep everywhere.

Pictures have little power in fine detail, so the error is thousands of times flatter along some kernels than along
others. With the Cholesky factor R of XᵀX/n + μLᵀL the coordinates are Rk. A gradient step for the squared error is then
a step of Newton's method (Nocedal and Wright, Numerical Optimization, 2006, section 3.3), and close to one for other
losses. Without a constraint L-BFGS takes the steps (Liu and Nocedal, On the limited memory BFGS method for large scale
optimization, Mathematical Programming 45, 1989). With one, projected steps are halved if one leads uphill (Bertsekas,
On the Goldstein-Levitin-Polyak gradient projection method, IEEE Transactions on Automatic Control 21, 1976).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Optimizer

from deconv_cli.kernels.loss_functions import Loss, mean_loss
from deconv_cli.kernels.pair_equations import Pair, solve_constrained
from deconv_cli.operators.convolution import CONVOLUTIONS
from deconv_cli.vocabulary import Size


@dataclass(frozen=True)
class Constraint:
    """A constraint on the taps of a kernel: none is negative, they add up to `total`, or both."""

    nonnegative: bool
    total: float | None

    @property
    def is_empty(self) -> bool:
        """Whether there is no constraint."""
        return not self.nonnegative and self.total is None


class KernelModel(nn.Module):
    """Kernels of G groups of channels as a module with one parameter, `coordinates`, shape `(G, N, C_out)`.

    Args:
        metric: XᵀX/n + μLᵀL of each group, positive definite, shape `(G, N, N)` with N = C_in·prod(k).
        penalty: μLᵀL, of the same shape.
        columns: the taps to start from, shape `(G, N, C_out)`.
        size: of the kernel.
        constraint: on the taps.
    """

    def __init__(self, metric: Tensor, penalty: Tensor, columns: Tensor, size: Size, constraint: Constraint) -> None:
        super().__init__()
        self.size = size
        self.constraint = constraint
        self.register_buffer("metric", metric)
        self.register_buffer("penalty", penalty)
        self.register_buffer("factor", torch.linalg.cholesky(metric, upper=True))
        self.coordinates = nn.Parameter(self.coordinates_of(columns))
        self.project_()

    def columns(self) -> Tensor:
        """Return the taps, shape `(G, N, C_out)`."""
        return torch.linalg.solve_triangular(cast(Tensor, self.factor), self.coordinates, upper=True)

    def coordinates_of(self, columns: Tensor) -> Tensor:
        """Return the coordinates of taps `(G, N, C_out)`."""
        return cast(Tensor, self.factor) @ columns

    def forward(self, wide: Tensor) -> Tensor:
        """Convolve images that include their border, `(B, G·C_in, *(size + k − 1))`, to `(B, G·C_out, *size)`."""
        return convolve(wide, self.columns(), self.size)

    def roughness(self) -> Tensor:
        """Return ½ Σ kᵀμLᵀLk."""
        columns = self.columns()
        return 0.5 * (columns * (cast(Tensor, self.penalty) @ columns)).sum()

    @torch.no_grad()
    def project_(self) -> None:
        """Project the taps onto the constraint, in the metric of the coordinates."""
        if not self.constraint.is_empty:
            self.coordinates.copy_(self.nearest(self.coordinates))

    def nearest(self, coordinates: Tensor) -> Tensor:
        """Return the nearest coordinates that obey the constraint."""
        if self.constraint.is_empty:
            return coordinates
        metric, factor = cast(Tensor, self.metric), cast(Tensor, self.factor)
        right, how = factor.mT @ coordinates, self.constraint
        found = [
            [solve_constrained(h, column, nonnegative=how.nonnegative, total=how.total) for column in columns]
            for h, columns in zip(metric, right.mT, strict=True)
        ]
        return self.coordinates_of(torch.stack([torch.stack(columns, 1) for columns in found]))


def convolve(wide: Tensor, columns: Tensor, size: Size) -> Tensor:
    """Convolve images that include their border with taps `(G, N, C_out)`, as `KernelModel` does."""
    weight = columns.mT.reshape(len(columns) * columns.shape[-1], -1, *size)
    return CONVOLUTIONS[len(size)](wide, weight, groups=len(columns))


TOLERANCE = 1e-9
"""Distance to the minimum at which the descent ends, relative to the blurred images."""
MAX_ROUNDS = 60
STEPS_A_ROUND, HISTORY = 10, 20
LONGER = 4.0
"""A round begins with this multiple of the last step length, at most 1."""
PATIENCE, NEARER = 4, 0.7
"""Rounds in which the distance to the minimum should fall by this factor."""


@dataclass(frozen=True, eq=False)
class Stripe:
    """Some rows of outputs of all groups: `wide` of shape `(1, G·C_in, *(n + k − 1))`, `y` of `(1, G·C_out, *n)`."""

    wide: Tensor
    y: Tensor


def cut_stripes(groups: Sequence[Sequence[Pair]], size: Size) -> tuple[list[Stripe], list[Stripe]]:
    """Cut pairs, in the same order for each group, into the stripes to fit to and those that can be held out."""
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

    def backward(self, model: KernelModel, stripes: Sequence[Stripe]) -> float:
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


class LossDescent:
    """Moves the taps of a model to the minimum of an objective over stripes of outputs, in rounds of a few steps."""

    def __init__(self, model: KernelModel, objective: Objective, stripes: Sequence[Stripe]) -> None:
        self.model, self.objective, self.stripes = model, objective, stripes
        self.optimizer: Optimizer
        if model.constraint.is_empty:
            self.optimizer = LBFGS(
                model.parameters(),
                max_iter=STEPS_A_ROUND,
                history_size=HISTORY,
                tolerance_grad=0.0,
                tolerance_change=0.0,
                line_search_fn="strong_wolfe",
            )
        else:
            self.optimizer = SGD(model.parameters(), lr=1.0)

    def run(self) -> float:
        """Descend until the minimum is near, or until the distance stops falling, as at a kink.

        Returns:
            The certificate: the distance to the minimum, relative to the kernel, both measured in blurred images.
        """
        value = self._value()
        found = [self._certificate()]
        while len(found) <= MAX_ROUNDS and found[-1] > TOLERANCE:
            if len(found) > PATIENCE and min(found[-PATIENCE:]) > NEARER * min(found[:-PATIENCE]):
                break
            if isinstance(self.optimizer, LBFGS):
                self.optimizer.step(self._value)
                value = self._value()
            else:
                value = self._project_steps(value)
            found.append(self._certificate())
        return found[-1]

    def _project_steps(self, value: float) -> float:
        """Take projected steps that lower the value."""
        group = self.optimizer.param_groups[0]
        # The loss may be less steep here than where the last round ended.
        group["lr"] = min(1.0, LONGER * group["lr"])
        for _ in range(STEPS_A_ROUND):
            before, gradient = self.model.coordinates.detach().clone(), self.model.coordinates.grad
            self.optimizer.step()
            self.model.project_()
            tried = self._value()
            if tried <= value:
                value = tried
                continue
            with torch.no_grad():
                self.model.coordinates.copy_(before)
            self.model.coordinates.grad = gradient
            group["lr"] /= 2
        return value

    def _value(self) -> float:
        self.optimizer.zero_grad()
        return self.objective.backward(self.model, self.stripes)

    def _certificate(self) -> float:
        """Return the length of a gradient step relative to the kernel; the gradient is that of the last value."""
        coordinates, gradient = self.model.coordinates.detach(), self.model.coordinates.grad
        assert gradient is not None
        step = coordinates - self.model.nearest(coordinates - gradient)
        return float(step.norm() / coordinates.norm())
