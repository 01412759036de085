"""Nonlinear least squares with bounds on the outputs: min ½‖F(x) − s‖² over x and over all s with l ≤ s ≤ u.

Levenberg–Marquardt steps: the linearized problem, which is one of `bounded_least_squares.py`, is solved with a damping
that follows how well the last step was predicted (Nocedal and Wright, Numerical Optimization, 2006, section 10.3). A
network of ReLUs and max pooling has many local minima at its kinks. They are avoided, as far as may be, by starting
with smooth stand-ins that become ever sharper (`smoothing.py`). Measured on random networks of two ReLU layers with
stride and of ReLU, max pooling and residual blocks, the relative residual that is left is a fifth to a fourteenth of
the one without.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.bounds import Bounds
from deconv_cli.operators.linearization import Function, Linearization
from deconv_cli.operators.smoothing import Smoothed
from deconv_cli.solvers.bounded_least_squares import solve_bounded
from deconv_cli.solvers.iteration_log import IterationLog, Progress, StoppingRule
from deconv_cli.solvers.norms import norm
from deconv_cli.solvers.solution import Solution, Status

OBJECTIVE = "½‖F(x) − s‖² over x and over all s within the bounds of the outputs; a local minimum"
SHARPNESSES = tuple(2.0**n for n in range(9))
"""Of the stand-ins, one after the other; then come the true functions."""
MAX_SMOOTH_STEPS = 15
# A stand-in is left when a step lowers its objective by less than this part.
SMOOTH_GAIN = 0.05
# The true functions are left when so many steps together lower the residual by less than this part.
PATIENCE = 8
LEAST_GAIN = 0.02
# How far a linearized problem is solved, and by how many iterations: it holds but nearby.
STEP_ACCURACY = 1e-3
MAX_STEP_ITERATIONS = 100
# The damping that a start has, in units of ‖Jᵀr‖²/‖r‖², and what bad and good predictions change it by.
FIRST_DAMPING = 1e-3
RAISE, LOWER = 4.0, 0.2
POOR, GOOD = 0.25, 0.75
MAX_DAMPING = 1e12


def solve_bounded_nonlinear(
    function: Function,
    bounds: Bounds,
    start: Tensor,
    rule: StoppingRule,
    *,
    smooths: bool = True,
    progress: Progress | None = None,
) -> Solution:
    """Minimize ½‖F(x) − s‖² over x and over all s within bounds.

    The certificate is ‖Jᵀ(s − F(x))‖ / (‖J‖‖s‖), with the derivative J at x and ‖J‖ as Jᵀs shows it. It says nothing of
    other minima.

    Args:
        function: F, on batches; see `Linearization`.
        bounds: of its outputs, without a batch axis.
        start: first estimate, shape `input_shape`.
        rule: when to stop: the tolerance is that of the residual, relative to the data, or of the certificate; the
            iterations are those of the linearized problems under each sharpness.
        smooths: whether to begin with smooth stand-ins; not where the start is near already.
        progress: called after every step.
    """
    log = IterationLog(rule, progress)
    x = start
    if smooths and _has_kinks(function, start):
        for sharpness in SHARPNESSES:
            x = _Steps(_smoothed(function, sharpness), bounds, log).run(x, MAX_SMOOTH_STEPS, SMOOTH_GAIN, 1)[0].x
    point, status = _Steps(function, bounds, log).run(x, rule.max_iterations, LEAST_GAIN, PATIENCE)
    certificate = point.certificate
    return Solution(point.x, status, log.n_iterations, certificate, tuple(log.history), OBJECTIVE)


def _has_kinks(function: Function, start: Tensor) -> bool:
    with torch.no_grad(), Smoothed(1.0) as replaced:
        function(start[None])
    return replaced.n_replaced > 0


def _smoothed(function: Function, sharpness: float) -> Function:
    def smooth(x: Tensor) -> Tensor:
        with Smoothed(sharpness):
            return function(x)

    return smooth


@dataclass(frozen=True, eq=False)
class _Point:
    """An estimate x, the derivative there, the misfit s − F(x), its norm, that of s, and the certificate."""

    x: Tensor
    jacobian: Linearization
    misfit: Tensor
    residual: float
    scale: float
    certificate: float


class _Steps:
    """Levenberg–Marquardt steps for one function."""

    def __init__(self, function: Function, bounds: Bounds, log: IterationLog) -> None:
        self._function, self._bounds, self._log = function, bounds, log
        self._tolerance = log.rule.tolerance
        self._most = log.n_iterations + log.rule.max_iterations

    def run(self, x: Tensor, max_steps: int, least_gain: float, patience: int) -> tuple[_Point, Status]:
        """Step until the residual or the certificate is small, little is gained, or the iterations are spent."""
        point = self._at(x)
        slope = norm(point.jacobian.adjoint(point.misfit), point.x.ndim)
        damping = FIRST_DAMPING * (synchronize.as_number(slope) / (point.residual or 1.0)) ** 2
        residuals = [point.residual]
        for _ in range(max_steps):
            if point.residual <= self._tolerance * point.scale or point.certificate <= self._tolerance:
                return point, Status.CONVERGED
            if self._log.n_iterations >= self._most or not math.isfinite(point.residual):
                return point, Status.MAX_ITERATIONS
            if not 0 < damping <= MAX_DAMPING * FIRST_DAMPING:  # zero where the derivative sees nothing of the data
                return point, Status.LOCAL_MINIMUM
            step = self._step(point, damping)
            residual = self._residual(point.x + step)
            agreement = self._agreement(point, step, residual)
            if agreement > 0:
                point = self._at(point.x + step)
                residuals.append(point.residual)
                self._log.record(point.residual / point.scale)
            damping *= RAISE if not agreement >= POOR else LOWER if agreement > GOOD else 1.0
            if len(residuals) > patience and agreement >= POOR:
                gained = 1 - residuals[-1] / residuals[-1 - patience]
                if gained < least_gain:
                    return point, Status.LOCAL_MINIMUM
        return point, Status.MAX_ITERATIONS

    def _at(self, x: Tensor) -> _Point:
        jacobian = Linearization(self._function, x)
        target = self._bounds.nearest(jacobian.value)
        misfit = target - jacobian.value
        sizes = [norm(each, each.ndim) for each in (misfit, target, jacobian.adjoint(misfit), jacobian.adjoint(target))]
        residual, scale, gradient, pulled = (synchronize.as_number(size) for size in sizes)
        return _Point(
            x, jacobian, misfit, residual, scale or 1.0, gradient / pulled if pulled > 0 else float(residual > 0)
        )

    def _residual(self, x: Tensor) -> float:
        with torch.no_grad():
            value = self._function(x[None])[0]
        misfit = self._bounds.nearest(value) - value
        return synchronize.as_number(norm(misfit, misfit.ndim))

    def _step(self, point: _Point, damping: float) -> Tensor:
        """Minimize ½‖F(x) + Jd − s‖² + ½·damping·‖d‖² over d and s."""
        left = max(1, self._most - self._log.n_iterations)
        rule = StoppingRule(STEP_ACCURACY, min(MAX_STEP_ITERATIONS, left))
        near = self._bounds.shifted(-point.jacobian.value)
        found = solve_bounded(point.jacobian, near, rule, weight=damping)
        self._log.n_inner += found.n_iterations
        return found.value

    def _agreement(self, point: _Point, step: Tensor, residual: float) -> float:
        """Divide the decrease of the objective by the one that the linearized problem predicts."""
        value = point.jacobian.value + point.jacobian.forward(step)
        misfit = self._bounds.nearest(value) - value
        predicted = point.residual**2 - synchronize.as_number(norm(misfit, misfit.ndim)) ** 2
        return (point.residual**2 - residual**2) / predicted if predicted > 0 else -1.0
