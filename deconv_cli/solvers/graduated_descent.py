"""Descent over the kinks of a network: ½‖F(x) − s‖² over x and over all s with l ≤ s ≤ u, under smooth stand-ins.

A network of ReLUs and max pooling has many local minima at its kinks. They are avoided, as far as may be, by starting
with smooth stand-ins that become ever sharper (`smoothing.py`). Under each of them, and then under the true functions,
limited-memory quasi-Newton steps with a line search are taken (Liu and Nocedal, On the limited memory BFGS method for
large scale optimization, Mathematical Programming 45, 1989): each costs one pass forwards and one back, where a
linearized problem takes dozens of both.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.bounds import Bounds
from deconv_cli.operators.linearization import Function
from deconv_cli.operators.smoothing import Smoothed
from deconv_cli.solvers.iteration_log import IterationLog
from deconv_cli.solvers.norms import norm

SHARPNESSES = tuple(2.0**n for n in range(1, 7))
"""Of the stand-ins, one after the other; then come the true functions."""
HISTORY = 30
"""Steps that the curvature is learned from."""
N_TOGETHER = 20
"""Steps whose gain is looked at together."""
MAX_SMOOTH_STEPS = 100
MAX_TRUE_STEPS = 400
LEAST_DESCENT = 0.03
"""A function is left when the steps that are looked at together lower the residual by less than this part."""
SMALL = 1e-4
"""From this relative residual down linearized problems are the quicker way."""


def has_kinks(function: Function, x: Tensor) -> bool:
    """Tell whether a function calls one that has a smooth stand-in, at `x` of shape `input_shape`."""
    with torch.no_grad(), Smoothed(1.0) as replaced:
        function(x[None])
    return replaced.n_replaced > 0


def descend(function: Function, bounds: Bounds, start: Tensor, log: IterationLog) -> Tensor:
    """Lower the distance of the outputs to their bounds, as far as that goes well.

    Args:
        function: F, on batches.
        bounds: of its outputs, without a batch axis, in the dtype of the start.
        start: first estimate, shape `input_shape`.
        log: counts the passes, and records the relative residual after each.

    Returns:
        An estimate of the shape of the start.
    """
    x = start
    for sharpness in SHARPNESSES:
        x = _Descent(_smoothed(function, sharpness), bounds, log).run(x, MAX_SMOOTH_STEPS)
    return _Descent(function, bounds, log).run(x, MAX_TRUE_STEPS)


def _smoothed(function: Function, sharpness: float) -> Function:
    def smooth(x: Tensor) -> Tensor:
        with Smoothed(sharpness):
            return function(x)

    return smooth


class _Descent:
    """Quasi-Newton steps for one function."""

    def __init__(self, function: Function, bounds: Bounds, log: IterationLog) -> None:
        self._function, self._bounds, self._log = function, bounds, log

    def run(self, start: Tensor, max_steps: int) -> Tensor:
        """Step until little is gained, little is left, or the iterations are spent; gives where it ended."""
        x = start.clone(memory_format=torch.contiguous_format).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [x],
            max_iter=N_TOGETHER,
            history_size=HISTORY,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

        def evaluate() -> Tensor:
            optimizer.zero_grad()
            value = self._function(x[None])[0]
            target = self._bounds.nearest(value.detach())
            scale = norm(target, target.ndim).square().clamp_min(1e-30)
            loss = (value - target).square().sum() / scale.to(value.dtype)
            loss.backward()
            self._log.record(synchronize.as_number(loss.detach().sqrt()))
            return loss

        left = math.inf
        for _ in range(max_steps // N_TOGETHER):
            begun = len(self._log.history)
            if self._log.is_spent:
                break
            optimizer.step(evaluate)
            before, left = left, min(self._log.history[begun:])
            if not SMALL < left <= (1 - LEAST_DESCENT) * before:
                break
        found = x.detach()
        return found if synchronize.are_finite(found) else start
