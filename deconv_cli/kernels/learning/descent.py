"""Stochastic gradient descent over stripes until held-out data are predicted no better; then on to the minimum.

The learning rate is halved after every epoch that did not help (Robbins and Monro, A stochastic approximation method,
Annals of Mathematical Statistics 22, 1951, is why it has to fall at all).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.optim import LBFGS, SGD, Optimizer

from deconv_cli.kernels.learning.learned_kernel import LearnedKernel
from deconv_cli.kernels.learning.loss_functions import Objective, Stripe

LEARNING_RATE = 0.1
"""Of the Newton step that one stripe asks for."""
GAIN, RISE = 1e-4, 0.05
"""Shares of what was gained, or of the best loss: less is no gain; more than the other above the best is a rise."""

WORST = 2.0
"""An epoch that makes the loss so many times as large as it ever was is taken back: its steps were too long."""


@dataclass(frozen=True)
class CurvePoint:
    """The loss after so many passes over the data: where it learned, and where it was held out."""

    step: int
    training: float
    held_out: float


class Descent:
    """Runs epochs; all that the next one depends on is in `state_dict`.

    Args:
        model: the kernel.
        objective: what is made small.
        training: the stripes to learn from.
        held_out: those that are not learned from; where there are none, the training loss stands for theirs.
        seed: of the order of the stripes.
        patience: epochs without a gain after which it ends.
    """

    def __init__(
        self,
        model: LearnedKernel,
        objective: Objective,
        training: Sequence[Stripe],
        held_out: Sequence[Stripe],
        *,
        seed: int,
        patience: int,
    ) -> None:
        self.model, self.objective = model, objective
        self.training, self.held_out = training, held_out or training
        self.patience = patience
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        self.waited = 0
        self.curve = [self._look()]
        self.best = self.curve[0].held_out
        self.best_coordinates = model.coordinates.detach().clone()

    @property
    def is_done(self) -> bool:
        """Whether the last epochs, as many as there is patience for, brought nothing."""
        return self.waited >= self.patience

    @property
    def is_overfitted(self) -> bool:
        """Whether what is held out is predicted worse than it was, and what was learned from as well as ever."""
        best, last = min(self.curve, key=lambda point: point.held_out), self.curve[-1]
        lowest = min(point.training for point in self.curve)
        # Where steps were too long for a loss, both rise, and nothing was learned by heart.
        is_low = last.training - lowest <= RISE * (self.curve[0].training - lowest)
        return last.held_out > self.best + RISE * self._unit() and last.training < best.training and is_low

    def run_epoch(self) -> CurvePoint:
        """Go once through the stripes, and look what it brought."""
        before = self.model.coordinates.detach().clone()
        for at in torch.randperm(len(self.training), generator=self.generator).tolist():
            self.optimizer.zero_grad()
            self.objective.backward(self.model, [self.training[at]])
            self.optimizer.step()
        self.model.project_()
        point = self._look()
        if not point.held_out <= WORST * max(abs(seen.held_out) for seen in self.curve):  # NaN too
            with torch.no_grad():
                self.model.coordinates.copy_(before)
            point = replace(self.curve[-1], step=point.step)
        self.curve.append(point)
        if point.held_out < self.best - GAIN * self._unit():
            self.waited = 0
        else:
            self.waited += 1
            self.optimizer.param_groups[0]["lr"] /= 2
        if point.held_out < self.best:
            self.best = point.held_out
            self.best_coordinates = self.model.coordinates.detach().clone()
        return point

    def take_best(self) -> None:
        """Go back to the kernel that predicted best what is held out."""
        with torch.no_grad():
            self.model.coordinates.copy_(self.best_coordinates)

    def state_dict(self) -> dict[str, Any]:
        """Give all that the next epoch depends on, as tensors and plain numbers."""
        return {
            "coordinates": self.model.coordinates.detach().clone(),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "generator": self.generator.get_state(),
            "waited": self.waited,
            "curve": [[point.step, point.training, point.held_out] for point in self.curve],
            "best": self.best,
            "best_coordinates": self.best_coordinates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        with torch.no_grad():
            self.model.coordinates.copy_(state["coordinates"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.waited = state["waited"]
        self.curve = [CurvePoint(*point) for point in state["curve"]]
        self.best, self.best_coordinates = state["best"], state["best_coordinates"]

    def _look(self) -> CurvePoint:
        losses = [self.objective.loss_over(self.model, stripes) for stripes in (self.training, self.held_out)]
        return CurvePoint(len(getattr(self, "curve", [])), *losses)

    def _unit(self) -> float:
        return max(self.curve[0].held_out - self.best, abs(self.best))


STEPS_A_ROUND, HISTORY = 10, 20
LONGER = 4.0
"""Times the length of the last projected steps are those that a round begins with, at most 1."""
PATIENCE, NEARER = 4, 0.7
"""So many rounds should bring the minimum nearer by this factor."""


class Refinement:
    """Descends over all stripes at once to the minimum, in rounds; `state_dict` holds all that the next one needs.

    Without a constraint by L-BFGS (Liu and Nocedal, On the limited memory BFGS method for large scale optimization,
    Mathematical Programming 45, 1989). With one by projected steps, which are halved where one would lead uphill
    (Bertsekas, On the Goldstein-Levitin-Polyak gradient projection method, IEEE Transactions on Automatic Control 21,
    1976).

    Args:
        model: the kernel.
        objective: what is made small.
        stripes: of all outputs.
    """

    def __init__(self, model: LearnedKernel, objective: Objective, stripes: Sequence[Stripe]) -> None:
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
        self.values = [self._value()]
        self.certificates = [self._certificate()]

    def run_round(self) -> float:
        """Take a few steps; gives how far the minimum may be, relative to the kernel, as it makes images."""
        if isinstance(self.optimizer, LBFGS):
            self.optimizer.step(self._value)
            self.values.append(self._value())
        else:
            self.values.append(self._descend(self.values[-1]))
        self.certificates.append(self._certificate())
        return self.certificates[-1]

    def is_done(self, tolerance: float) -> bool:
        """Tell whether the minimum is as near as `tolerance`, or no nearer after some rounds, as beside a kink."""
        found = self.certificates
        is_level = len(found) > PATIENCE and min(found[-PATIENCE:]) > NEARER * min(found[:-PATIENCE])
        return found[-1] <= tolerance or is_level

    def state_dict(self) -> dict[str, Any]:
        """Give all that the next round depends on, as tensors and plain numbers."""
        return {
            "coordinates": self.model.coordinates.detach().clone(),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "values": list(self.values),
            "certificates": list(self.certificates),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        with torch.no_grad():
            self.model.coordinates.copy_(state["coordinates"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.values, self.certificates = list(state["values"]), list(state["certificates"])

    def _descend(self, value: float) -> float:
        """Take projected steps downhill from a point of this value."""
        group = self.optimizer.param_groups[0]
        # Where the loss was steep before it need not be steep now.
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
        """Compare a gradient step with the kernel; the gradient is that of the last value."""
        coordinates, gradient = self.model.coordinates.detach(), self.model.coordinates.grad
        assert gradient is not None
        step = coordinates - self.model.nearest(coordinates - gradient)
        return float(step.norm() / coordinates.norm())
