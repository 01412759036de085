"""The last digits: gradient descent over all stripes at once, to the minimum.

Without a constraint by L-BFGS (Liu and Nocedal, On the limited memory BFGS method for large scale optimization,
Mathematical Programming 45, 1989); with one by projected steps, which are halved where one would lead uphill
(Bertsekas, On the Goldstein-Levitin-Polyak gradient projection method, IEEE Transactions on Automatic Control 21,
1976).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import LBFGS, SGD, Optimizer

from deconv_cli.kernels.learning.learned_kernel import LearnedKernel
from deconv_cli.kernels.learning.loss_functions import Objective, Stripe

STEPS_A_ROUND, HISTORY = 10, 20
LONGER = 4.0
"""Times the length of the last projected steps are those that a round begins with, at most 1."""
PATIENCE, NEARER = 4, 0.7
"""So many rounds should bring the minimum nearer by this factor."""


class Refinement:
    """Runs rounds; all that the next one depends on is in `state_dict`.

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
