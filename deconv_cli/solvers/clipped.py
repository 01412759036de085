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

from dataclasses import dataclass

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
ROUNDING = 4.0
"""Of the precision's epsilon, the certificate below which rounding of the estimate may leave no less."""
NEWTON_ACCURACY = 0.5
DEFAULT_TOLERANCE = 1e-5
"""The certificate at which it ends where none was given: nearer to the solution nothing changes that one would see."""
CLOSE_TOLERANCE = 2e-7
"""The same for parts of a picture, which have to agree: about what single precision admits."""


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
    x = preconditioner.estimate(y)
    status, found = Status.CONVERGED, _Examined.of(problem, y, is_clipped, x)
    for _ in range(MAX_ROUNDS):
        # There is no use in solving exactly what the next round poses anew.
        accuracy = max(rule.tolerance, NEWTON_ACCURACY * found.certificate)
        left = StoppingRule(accuracy, max(rule.max_iterations - len(history), 1))
        equations = found.equations(problem, y)
        better = iterate(equations, left, start=x, preconditioner=preconditioner, progress=progress)
        x, history, last = better.value, [*history, *better.residual_norms], found
        found = _Examined.of(problem, y, is_clipped, x)
        if found.certificate <= rule.tolerance or len(history) >= rule.max_iterations:
            break
        if found.certificate >= last.certificate and synchronize.holds_everywhere(found.weights == last.weights):
            break
    if found.certificate > max(rule.tolerance, ROUNDING * torch.finfo(x.dtype).eps):
        is_spent = len(history) >= rule.max_iterations
        status = Status.MAX_ITERATIONS if is_spent else Status.STAGNATED
    return Solution(x, status, len(history), found.certificate, tuple(history), OBJECTIVE)


@dataclass(frozen=True, eq=False)
class _Examined:
    """How each sample counts at an estimate.

    Attributes:
        weights: w, of the shape of the data: 1, `EXCESS_WEIGHT`, or 0 where light counts linearly.
        certificate: ‖Aᴴ(w·r) − λσ²max·LᴴLx‖ / ‖Aᴴy‖ of the image that is worst.
    """

    weights: Tensor
    certificate: float

    @classmethod
    def of(cls, problem: TikhonovProblem, y: Tensor, is_clipped: Tensor, x: Tensor) -> _Examined:
        """Look at an estimate `x` from data `y`."""
        residual = y - problem.operator.forward(x)
        exceeds, least = is_clipped & (residual <= 0), -_most_excess(y)
        weights = torch.ones_like(y).masked_fill_(exceeds, EXCESS_WEIGHT)
        weights.masked_fill_(exceeds & (residual < least), 0)
        counted = torch.where(exceeds, EXCESS_WEIGHT * torch.maximum(residual, least), residual)
        equations = NormalEquations(problem.operator, y, problem.penalty_operator, problem.weight)
        gradient = equations.remaining(x, counted)
        return cls(weights, synchronize.as_number(relative(equations.norm(gradient), equations.scale).max()))

    def equations(self, problem: TikhonovProblem, y: Tensor) -> NormalEquations:
        """Write down the quadratic problem that holds as long as each sample counts so."""
        roots = self.weights.sqrt()
        pull = torch.where(self.weights == 0, -EXCESS_WEIGHT * _most_excess(y), 0)
        operator, g = WeightedSamples(problem.operator, roots), problem.operator.adjoint(pull)
        return NormalEquations(operator, roots * y, problem.penalty_operator, problem.weight, g=g)


def _most_excess(y: Tensor) -> Tensor:
    """Give the light above each bound that counts by its square."""
    return MOST_EXCESS * y.abs()
