"""Samples at the top of their range are bounds: min ½Σᵢ wᵢrᵢ² + ½λσ²max‖Lx‖² with r = y − Ax.

A sensor or a file that is full says "at least this bright". So a clipped sample counts where the prediction Ax stays
below it, w = 1, and above it hardly: w = `EXCESS_WEIGHT` at first, and a constant pull further on. The objective is
convex, quadratic in pieces, and differentiable. Newton's method solves it: with the weights that hold now, weighted
least squares are solved by conjugate gradients, and the weights are found again, until they no longer change
(Mangasarian, "A finite Newton method for classification", Optimization Methods and Software 17, 2002, on problems of
this form; light in place of classes. Huber, "Robust estimation of a location parameter", Annals of Mathematical
Statistics 35, 1964).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.solvers.cgls import iterate
from deconv_cli.solvers.iteration_log import Progress, StoppingRule
from deconv_cli.solvers.iterative import TorusPreconditioner
from deconv_cli.solvers.normal_equations import NormalEquations
from deconv_cli.solvers.norms import relative
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solution import Solution, Status

OBJECTIVE = "½‖Ax − y‖² + ½λσ²max‖Lx‖², where clipped samples are lower bounds of Ax"
EXCESS_WEIGHT = 1e-3
MOST_EXCESS = 0.1
"""Light above a bound counts by so much of its square, and from so much of the bound on no more than linearly: the
objective of Huber. Where the penalty alone held the estimate it took three times the iterations, and hung on data far
away; with a square for all light, saturated stars lost their brightness, and what is around them with it."""
MAX_ROUNDS = 40
CLOSE = 16.0
"""Of the precision's epsilon, the certificate from which on down what is left over is computed in double precision."""
NEWTON_ACCURACY = 0.5
DEFAULT_TOLERANCE = 3e-6
"""The certificate at which it ends where none was given: nearer to the solution nothing changes that one would see."""
CLOSE_TOLERANCE = 3e-8
"""The same for parts of a picture, which have to agree."""


class WeightedSamples(LinearOperator):
    """A whose outputs are multiplied one by one.

    Args:
        operator: A.
        factors: shape `(*batch, *operator.output_shape)`.
    """

    def __init__(self, operator: LinearOperator, factors: Tensor) -> None:
        self.input_shape, self.output_shape = operator.input_shape, operator.output_shape
        self._operator, self._factors = operator, factors

    def forward(self, x: Tensor) -> Tensor:
        """Apply to `x` of shape `(*batch, *input_shape)`."""
        return self._factors * self._operator.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the transpose to `y` of shape `(*batch, *output_shape)`."""
        return self._operator.adjoint(self._factors * y)


def solve_clipped(
    problem: TikhonovProblem,
    y: Tensor,
    is_clipped: Tensor,
    rule: StoppingRule,
    progress: Progress | None = None,
) -> Solution:
    """Solve with clipped samples as lower bounds.

    Args:
        problem: with λ > 0.
        y: shape `(*batch, C_out, *output_size)`.
        is_clipped: which samples are bounds, of the same shape.
        rule: when to stop; each round may take all the iterations that are left.
        progress: called after every iteration.

    Returns:
        Its certificate is that of `_Examined`.
    """
    preconditioner, history = TorusPreconditioner(problem), list[float]()
    x, dtype, precise = preconditioner.estimate(y), y.dtype, problem
    if rule.tolerance < CLOSE * torch.finfo(dtype).eps:
        precise = replace(problem, operator=problem.operator.in_float64())
        x, y = x.to(precise.operator.kernel.dtype), y.to(precise.operator.kernel.dtype)
    found = _Examined.of(precise, y, is_clipped, x)
    for _ in range(MAX_ROUNDS):
        n_left = rule.max_iterations - len(history)
        if found.certificate <= rule.tolerance or n_left <= 0:
            break
        # There is no use in solving exactly what the next round poses anew.
        part_left = StoppingRule(max(rule.tolerance / found.certificate, NEWTON_ACCURACY), n_left)
        listener = _of_all_rounds(progress, len(history), found.certificate)
        better = iterate(found.correction(problem), part_left, preconditioner=preconditioner, progress=listener)
        x, last = x + better.value.to(x.dtype), found
        history += [part * found.certificate for part in better.residual_norms]
        found = _Examined.of(precise, y, is_clipped, x)
        if found.certificate >= last.certificate and synchronize.holds_everywhere(found.weights == last.weights):
            break
    status = Status.CONVERGED
    if found.certificate > rule.tolerance:
        status = Status.MAX_ITERATIONS if len(history) >= rule.max_iterations else Status.STAGNATED
    return Solution(x.to(dtype), status, len(history), found.certificate, tuple(history), OBJECTIVE)


def _of_all_rounds(progress: Progress | None, n_before: int, certificate: float) -> Progress | None:
    """Count iterations over all rounds, and give the certificate in place of the part of a gradient that is left."""
    return progress and (lambda n, part: progress(n_before + n, part * certificate))


@dataclass(frozen=True, eq=False)
class _Examined:
    """How each sample counts at an estimate, and what is left to do.

    Attributes:
        weights: w, of the shape of the data: 1, `EXCESS_WEIGHT`, or 0 where light counts linearly.
        gradient: Aᴴ(w·r) − λσ²max·LᴴLx, r no less than where light counts linearly; of the shape of the estimate.
        certificate: its norm over that of Aᴴy, of the image that is worst.
    """

    weights: Tensor
    gradient: Tensor
    certificate: float

    @classmethod
    def of(cls, problem: TikhonovProblem, y: Tensor, is_clipped: Tensor, x: Tensor) -> _Examined:
        """Look at an estimate `x` from data `y`."""
        residual = y - problem.operator.forward(x)
        exceeds, least = is_clipped & (residual <= 0), -MOST_EXCESS * y.abs()
        weights = torch.ones_like(y).masked_fill_(exceeds, EXCESS_WEIGHT)
        weights.masked_fill_(exceeds & (residual < least), 0)
        counted = torch.where(exceeds, EXCESS_WEIGHT * torch.maximum(residual, least), residual)
        equations = NormalEquations(problem.operator, y, problem.penalty_operator, problem.weight)
        gradient = equations.remaining(x, counted)
        certificate = synchronize.as_number(relative(equations.norm(gradient), equations.scale).max())
        return cls(weights, gradient, certificate)

    def correction(self, problem: TikhonovProblem) -> NormalEquations:
        """Pose what is added to the estimate as long as each sample counts so, in the precision of `problem`."""
        dtype = problem.operator.kernel.dtype
        operator = WeightedSamples(problem.operator, self.weights.to(dtype).sqrt())
        nothing = torch.zeros_like(self.weights, dtype=dtype)
        return NormalEquations(operator, nothing, problem.penalty_operator, problem.weight, g=self.gradient.to(dtype))
