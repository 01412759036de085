"""Least squares through a max pooling: min ½‖P(Ax) − s‖² over x and over all s within bounds, P the pooling.

If it were known which input of each window is the largest, it would be bounded least squares
(`bounded_least_squares.py`), convex; which ones they are is a search among many. Two sets are easy to project onto: the
inputs Ax of the pooling, and those that it turns into outputs within the bounds, with the largest input of each window
as it is at present. The iteration of Douglas and Rachford, z ← z + P_A(2P_B(z) − z) − P_B(z), finds a point near both
where alternating projections and descents stop at local minima (Bauschke, Combettes and Luke, Phase retrieval, error
reduction algorithm, and Fienup variants, Journal of the Optical Society of America A 19, 2002; Elser, Rankenburg and
Thibault, Searching with iterated maps, PNAS 104, 2007). From there the convex problems are solved, each with the
largest inputs that the one before has found.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.bounds import Bounds, PooledInputs
from deconv_cli.operators.linear_operator import InPrecision
from deconv_cli.operators.linearization import Function, Linearization
from deconv_cli.solvers.bounded_least_squares import solve_bounded
from deconv_cli.solvers.cgls import iterate
from deconv_cli.solvers.iteration_log import IterationLog
from deconv_cli.solvers.normal_equations import NormalEquations
from deconv_cli.solvers.norms import norm

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
    """Find an x whose affine image comes as near as may be to what the outputs of a max pooling allow.

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
