"""Minimize a loss over the taps of kernels, by descent over all outputs.

Without a constraint, by L-BFGS (Liu and Nocedal, On the limited memory BFGS method for large scale optimization,
Mathematical Programming 45, 1989). With one, by projected steps, which are halved if one leads uphill
(Bertsekas, On the Goldstein-Levitin-Polyak gradient projection method, IEEE Transactions on Automatic Control 21,
1976).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.optim import LBFGS, SGD, Optimizer

from deconv_cli.kernels.fit.kernel_model import KernelModel
from deconv_cli.kernels.fit.loss_functions import Objective, Stripe

TOLERANCE = 1e-9
"""Distance to the minimum at which the descent ends, relative to the blurred images."""
MAX_ROUNDS = 60
STEPS_A_ROUND, HISTORY = 10, 20
LONGER = 4.0
"""A round begins with this multiple of the last step length, at most 1."""
PATIENCE, NEARER = 4, 0.7
"""Rounds in which the distance to the minimum should fall by this factor."""


class LossDescent:
    """Moves the taps of a model to the minimum, in rounds of a few steps.

    Args:
        model: the kernels to start from.
        objective: to be minimized.
        stripes: of the outputs over which it is summed.
    """

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
