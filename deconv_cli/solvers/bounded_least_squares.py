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
from deconv_cli.operators.bounds import Bounds, PooledInputs
from deconv_cli.operators.linear_operator import (
    Composed,
    Function,
    Identity,
    InPrecision,
    Linearization,
    LinearOperator,
)
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


MAX_PROJECTIONS = 300
NEAR = 5e-3
"""The projections end where the two sets are so near, relative to the inputs of the pooling."""
PROJECTION_ACCURACY, MAX_PROJECTION_ITERATIONS = 1e-2, 4
"""Of conjugate gradients, which go on from one projection to the next."""
MAX_ROUNDS = 30
ROUND_ACCURACY, MAX_ROUND_ITERATIONS = 0.03, 300
DAMPING = 1e-6
"""Of a round, in units of ‖Aᵀr‖²/‖r‖²: what the present largest inputs leave open stays as it is."""
LEAST_GAIN = 0.02
"""The rounds end where one lowers the misfit by less than this part."""


def solve_pooled(function: Function, quick: Function, inputs: PooledInputs, start: Tensor, log: IterationLog) -> Tensor:
    """Find an x whose affine image Ax + b comes as near as may be to what the outputs of a max pooling P allow.

    The problem is min ½‖P(Ax + b) − s‖² over x and over all s within bounds. If the largest input of each window were
    known, it would be bounded least squares, which is convex; to find these inputs is a search. Two sets are easy to
    project onto: the inputs Ax + b of the pooling, and those that it turns into outputs within the bounds with its
    present largest inputs. The iteration of Douglas and Rachford, z ← z + P_A(2P_B(z) − z) − P_B(z), finds a point near
    both where alternating projections and descents stop at local minima (Bauschke, Combettes and Luke, Phase retrieval,
    error reduction algorithm, and Fienup variants, Journal of the Optical Society of America A 19, 2002; Elser,
    Rankenburg and Thibault, Searching with iterated maps, PNAS 104, 2007). From there convex problems are solved, each
    with the largest inputs that the one before has found.

    Args:
        function: x → Ax + b, on batches. Its first outputs are the inputs of the pooling; those after them are to be
            zero, as those of a penalty.
        quick: the same in float32, for the linear systems.
        inputs: what the outputs of the pooling say of its inputs, in the dtype of the start.
        start: zeros of the shape of x.
        log: counts the iterations, and records how far the two sets are apart.

    Returns:
        The estimate; it need not be the best one.
    """
    search = _Search(function, quick, inputs, start, log)
    return search.solve_rounds(search.project(start))


class _Search:
    def __init__(
        self, function: Function, quick: Function, inputs: PooledInputs, start: Tensor, log: IterationLog
    ) -> None:
        self._function, self._inputs, self._log = function, inputs, log
        self._operator = InPrecision(Linearization(quick, start.float()), start.dtype)

    def project(self, x: Tensor) -> Tensor:
        """Iterate by the projections onto the two sets; gives the x of the last one."""
        offset = self._outputs(torch.zeros_like(x))
        z = self._allowed(offset).nearest(offset)
        for _ in range(MAX_PROJECTIONS):
            allowed = self._allowed(z).nearest(z)
            equations = NormalEquations(self._operator, 2 * allowed - z - offset)
            rule = self._log.rest(PROJECTION_ACCURACY, MAX_PROJECTION_ITERATIONS)
            found = iterate(equations, rule, start=x)
            x, self._log.n_inner = found.value, self._log.n_inner + found.n_iterations
            apart = self._without_penalty(self._operator.forward(x) + offset - allowed)
            z = z + apart
            gap = synchronize.as_number(_size(apart) / _size(allowed).clamp_min(1e-30))
            self._log.record(gap)
            if gap <= NEAR or self._log.is_spent:
                break
        return x

    def solve_rounds(self, x: Tensor) -> Tensor:
        """Solve convex problems, each with the largest inputs that the one before has found."""
        best, least = x, torch.inf
        for _ in range(MAX_ROUNDS):
            z = self._outputs(x)
            allowed = self._allowed(z)
            target = allowed.nearest(z)
            misfit = synchronize.as_number(_size(target - z) / _size(target).clamp_min(1e-30))
            is_better = misfit < (1 - LEAST_GAIN) * least
            best, least = (x, misfit) if misfit < least else (best, least)
            self._log.record(misfit)
            if not is_better or misfit <= self._log.rule.tolerance or self._log.is_spent:
                break
            rule = self._log.rest(ROUND_ACCURACY, MAX_ROUND_ITERATIONS)
            gradient = _size(self._operator.adjoint(target - z)) / _size(target - z)
            damping = DAMPING * synchronize.as_number(gradient) ** 2
            found = solve_bounded(self._operator, allowed.shifted(-z), rule, weight=damping)
            x, self._log.n_inner = x + found.value, self._log.n_inner + found.n_iterations
        return best

    def _outputs(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self._function(x[None])[0]

    def _allowed(self, z: Tensor) -> Bounds:
        """Bound all outputs, with those of a penalty, for an estimate of them."""
        n = self._inputs.n_inputs
        flat, found = z.flatten(), self._inputs.bounds_at(z.flatten()[:n])
        zeros = torch.zeros_like(flat[n:])
        lower, upper = (torch.cat([bound.flatten(), zeros]).reshape(z.shape) for bound in (found.lower, found.upper))
        return Bounds(lower, upper)

    def _without_penalty(self, z: Tensor) -> Tensor:
        flat = z.flatten()
        flat[self._inputs.n_inputs :] = 0
        return flat.reshape(z.shape)


def _size(values: Tensor) -> Tensor:
    return norm(values, values.ndim)
