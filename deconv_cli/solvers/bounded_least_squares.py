"""Least squares with bounds on the outputs: min ½‖Ax − s‖² + ½μ‖x‖² over x and over all s with l ≤ s ≤ u.

Where l = u the output is known, and the term is the ordinary misfit. Where it is only known to be at most u, as under a
ReLU that gave zero, or at least l, nothing is charged within the bounds and the square of what exceeds them outside.
Data that contradict no bound are met exactly.

For given x the best s is Ax cut to the bounds. What remains is convex, differentiable and quadratic in pieces, and is
solved by Newton's method on the outputs that are known or exceed a bound (Mangasarian, A finite Newton method for
classification, Optimization Methods and Software 17, 2002). The certificate is the relative gradient
‖Aᵀ(s − Ax) − μx‖ / ‖Aᵀs₀‖ with s₀ the s of x = 0: it vanishes if and only if the Karush–Kuhn–Tucker conditions hold.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.bounds import Bounds
from deconv_cli.operators.linear_operator import Composed, Identity, LinearOperator
from deconv_cli.solvers.cgls import iterate
from deconv_cli.solvers.iteration_log import IterationLog, Progress, StoppingRule
from deconv_cli.solvers.normal_equations import NormalEquations
from deconv_cli.solvers.norms import norm
from deconv_cli.solvers.solution import Solution, Status

OBJECTIVE = "½‖Ax − s‖² + ½μ‖x‖² over x and over all s within the bounds of the outputs"
# Up to so many entries the matrix of A is written out, and each Newton system solved by its singular values.
MAX_DENSE_ENTRIES = 2**20
# A Newton system is solved until this part of the gradient is left: the active outputs are about to change anyway.
NEWTON_ACCURACY = 0.02
# More steps than outputs change their side in any problem that was measured.
MAX_STEPS = 100
# The lowest point along a step is found to this many binary digits.
N_BISECTIONS = 30


def solve_bounded(
    A: LinearOperator,
    bounds: Bounds,
    rule: StoppingRule,
    *,
    weight: float = 0.0,
    progress: Progress | None = None,
) -> Solution:
    """Minimize ½‖Ax − s‖² + ½μ‖x‖² over x and over all s within bounds, from x = 0.

    With all outputs known and μ = 0 it is the solution of least norm.

    Args:
        A: a linear operator; its dtype and device are those of the bounds.
        bounds: of its outputs, tensors of shape `A.output_shape`.
        rule: when to stop.
        weight: μ.
        progress: called after every step.

    Returns:
        The solution; its value has the shape `A.input_shape`.
    """
    descent, log = _Descent(A, bounds, weight, rule), IterationLog(rule, progress)
    start = descent.at(bounds.lower.new_zeros(A.input_shape))
    scale = synchronize.as_number(start.size)
    point, status = descent.run(start, scale, log)
    certificate = synchronize.as_number(point.size) / (scale or 1.0)
    return Solution(point.x, status, log.n_iterations, certificate, tuple(log.history), OBJECTIVE, weight or None)


@dataclass(frozen=True, eq=False)
class _Point:
    """An estimate: x, z = Ax, the misfit s − z, and the negative gradient with its norm."""

    x: Tensor
    z: Tensor
    misfit: Tensor
    gradient: Tensor
    size: Tensor


class _Descent:
    def __init__(self, A: LinearOperator, bounds: Bounds, weight: float, rule: StoppingRule) -> None:
        self._operator, self._bounds, self._weight, self._rule = A, bounds, weight, rule
        n_entries = torch.Size(A.input_shape).numel() * torch.Size(A.output_shape).numel()
        # Under a weight conjugate gradients need few iterations, and where it changes from step to step, no accuracy.
        self._matrix = A.as_matrix() if n_entries <= MAX_DENSE_ENTRIES and weight == 0 else None
        self._is_linear = synchronize.holds_everywhere(bounds.known)

    def at(self, x: Tensor) -> _Point:
        """Evaluate all that is needed at `x`."""
        z = self._operator.forward(x)
        misfit = self._bounds.nearest(z) - z
        gradient = self._operator.adjoint(misfit) - self._weight * x
        return _Point(x, z, misfit, gradient, norm(gradient, gradient.ndim))

    def run(self, point: _Point, scale: float, log: IterationLog) -> tuple[_Point, Status]:
        """Step until the certificate is reached, nothing is gained, or the iterations are spent."""
        best = point
        for _ in range(MAX_STEPS):
            if synchronize.holds_everywhere(point.size <= self._rule.tolerance * scale):
                return point, Status.CONVERGED
            if log.is_spent:
                break
            size = synchronize.as_number(point.size)
            direction = self._newton_direction(point, 0.5 * self._rule.tolerance * scale / size, log)
            length = self._length(point, direction)
            if length == 0:
                return best, Status.STAGNATED
            point = self.at(point.x + length * direction)
            log.record(synchronize.as_number(point.size) / scale)
            if synchronize.holds_everywhere(point.size < best.size):
                best = point
            elif self._is_linear:  # rounding is all that is left
                return best, Status.STAGNATED
        return best, Status.MAX_ITERATIONS

    def _newton_direction(self, point: _Point, reach: float, log: IterationLog) -> Tensor:
        """Solve the normal equations of the active outputs, until at least the part `reach` of the gradient is left."""
        active = (point.misfit != 0) | self._bounds.known
        if self._matrix is not None:
            rows = self._matrix[active.flatten()]
            return (torch.linalg.pinv(rows) @ point.misfit[active]).reshape(point.x.shape)
        A = self._operator
        masked = Composed(
            (A,), A.input_shape, A.output_shape, lambda d: active * A.forward(d), lambda r: A.adjoint(active * r)
        )
        penalty = Identity(A.input_shape) if self._weight > 0 else None
        g = -self._weight * point.x if self._weight > 0 else None
        accuracy = reach if self._is_linear else max(NEWTON_ACCURACY, reach)
        equations = NormalEquations(masked, point.misfit, penalty, self._weight, g=g)
        found = iterate(equations, log.rest(accuracy))
        log.n_inner += found.n_iterations
        return found.value

    def _length(self, point: _Point, direction: Tensor) -> float:
        """Find how far to go along a direction: all the way, or to the lowest point before."""
        image = self._operator.forward(direction)

        def slope(t: float) -> float:
            z = point.z + t * image
            along = ((z - self._bounds.nearest(z)) * image).sum()
            return synchronize.as_number(along + self._weight * ((point.x + t * direction) * direction).sum())

        if self._is_linear:
            return 1.0
        if slope(0.0) >= 0:  # a direction that rounding has made
            return 0.0
        if slope(1.0) <= 0:
            return 1.0
        low, high = 0.0, 1.0
        for _ in range(N_BISECTIONS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if slope(middle) < 0 else (low, middle)
        return high
