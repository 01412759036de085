"""Nonlinear least squares with bounds on the outputs: min ½‖F(x) − s‖² over x and over all s with l ≤ s ≤ u.

Levenberg–Marquardt steps: the linearized problem, which is one of `bounded_least_squares.py`, is solved with a damping
that follows how well the last step was predicted (Nocedal and Wright, Numerical Optimization, 2006, section 10.3).
Functions with kinks, as networks of ReLUs and max pooling, have many local minima there. So the residual is first
lowered under smooth stand-ins that become ever sharper (`smoothing.py`), and then under the true function, by
limited-memory quasi-Newton steps with a line search (Liu and Nocedal, On the limited memory BFGS method for large scale
optimization, Mathematical Programming 45, 1989). Such a step costs one pass forwards and one back, where a linearized
problem takes dozens of both. The Levenberg–Marquardt steps then find the last digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.bounds import Bounds
from deconv_cli.operators.linear_operator import Function, InPrecision, Linearization, LinearOperator
from deconv_cli.operators.smoothing import Smoothed
from deconv_cli.solvers.bounded_least_squares import solve_bounded
from deconv_cli.solvers.iteration_log import IterationLog, Progress, StoppingRule
from deconv_cli.solvers.norms import norm
from deconv_cli.solvers.solution import Solution, Status

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


OBJECTIVE = "½‖F(x) − s‖² over x and over all s within the bounds of the outputs; a local minimum"
# A relative residual after the descent from which on a solution is not near.
NEAR = 1e-2
# The iteration ends when so many steps together lower the residual by less than this part.
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
    quick: Function | None = None,
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
            iterations are passes of the descent and iterations of the linearized problems together.
        quick: F in float32, for the descent and the linearized problems; residuals and certificate are those of F.
        smooths: whether to begin with smooth stand-ins; not where the start is near already.
        progress: called after every pass and step.
    """
    log, x = IterationLog(rule, progress), start
    steps = _Steps(function, bounds, log, quick)
    if smooths and has_kinks(function, start):
        dtype = start.dtype if quick is None else torch.float32
        x = descend(quick or function, bounds.to(dtype), start.to(dtype), log).to(start.dtype)
        point = steps.at(x)
        if point.residual > NEAR * point.scale:
            status = Status.MAX_ITERATIONS if log.is_spent else Status.LOCAL_MINIMUM
            return Solution(x, status, log.n_iterations, point.certificate, tuple(log.history), OBJECTIVE)
    point, status = steps.run(x)
    return Solution(point.x, status, log.n_iterations, point.certificate, tuple(log.history), OBJECTIVE)


@dataclass(frozen=True, eq=False)
class _Point:
    """An estimate x, F(x), the derivative there, the misfit s − F(x), its norm, that of s, and the certificate."""

    x: Tensor
    value: Tensor
    derivative: LinearOperator
    misfit: Tensor
    residual: float
    scale: float
    certificate: float


class _Steps:
    """Levenberg–Marquardt steps for one function, and for the same in float32 where it is linearized."""

    def __init__(self, function: Function, bounds: Bounds, log: IterationLog, quick: Function | None) -> None:
        self._function, self._bounds, self._log, self._quick = function, bounds, log, quick
        self._tolerance = log.rule.tolerance

    def run(self, x: Tensor) -> tuple[_Point, Status]:
        """Step until the residual or the certificate is small, little is gained, or the iterations are spent."""
        point = self.at(x)
        slope = norm(point.derivative.adjoint(point.misfit), point.x.ndim)
        damping = FIRST_DAMPING * (synchronize.as_number(slope) / (point.residual or 1.0)) ** 2
        residuals = [point.residual]
        while True:
            if point.residual <= self._tolerance * point.scale or point.certificate <= self._tolerance:
                return point, Status.CONVERGED
            if self._log.is_spent or not math.isfinite(point.residual):
                return point, Status.MAX_ITERATIONS
            if not 0 < damping <= MAX_DAMPING * FIRST_DAMPING:  # zero where the derivative sees nothing of the data
                return point, Status.LOCAL_MINIMUM
            step = self._step(point, damping)
            residual = self._residual(point.x + step)
            agreement = self._agreement(point, step, residual)
            if agreement > 0:
                point = self.at(point.x + step)
                residuals.append(point.residual)
                self._log.record(point.residual / point.scale)
            damping *= RAISE if not agreement >= POOR else LOWER if agreement > GOOD else 1.0
            if len(residuals) > PATIENCE and agreement >= POOR:
                gained = 1 - residuals[-1] / residuals[-1 - PATIENCE]
                if gained < LEAST_GAIN:
                    return point, Status.LOCAL_MINIMUM

    def at(self, x: Tensor) -> _Point:
        """Evaluate all that is needed at `x`."""
        jacobian = Linearization(self._function, x)
        target = self._bounds.nearest(jacobian.value)
        misfit = target - jacobian.value
        sizes = [norm(each, each.ndim) for each in (misfit, target, jacobian.adjoint(misfit), jacobian.adjoint(target))]
        residual, scale, gradient, pulled = (synchronize.as_number(size) for size in sizes)
        certificate = gradient / pulled if pulled > 0 else float(residual > 0)
        derivative: LinearOperator = jacobian
        if self._quick is not None:
            derivative = InPrecision(Linearization(self._quick, x.float()), x.dtype)
        return _Point(x, jacobian.value, derivative, misfit, residual, scale or 1.0, certificate)

    def _residual(self, x: Tensor) -> float:
        with torch.no_grad():
            value = self._function(x[None])[0]
        misfit = self._bounds.nearest(value) - value
        return synchronize.as_number(norm(misfit, misfit.ndim))

    def _step(self, point: _Point, damping: float) -> Tensor:
        """Minimize ½‖F(x) + Jd − s‖² + ½·damping·‖d‖² over d and s."""
        rule = self._log.rest(STEP_ACCURACY, MAX_STEP_ITERATIONS)
        near = self._bounds.shifted(-point.value)
        found = solve_bounded(point.derivative, near, rule, weight=damping)
        self._log.n_inner += found.n_iterations
        return found.value

    def _agreement(self, point: _Point, step: Tensor, residual: float) -> float:
        """Divide the decrease of the objective by the one that the linearized problem predicts."""
        value = point.value + point.derivative.forward(step)
        misfit = self._bounds.nearest(value) - value
        predicted = point.residual**2 - synchronize.as_number(norm(misfit, misfit.ndim)) ** 2
        return (point.residual**2 - residual**2) / predicted if predicted > 0 else -1.0
