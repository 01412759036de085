"""Samples at the top of their range are bounds: min ½Σᵢ rᵢ² + ½λσ²max‖Lx‖² with r = y − Ax, and rᵢ₊ at clipped samples.

A sensor or a file that is full says "at least this bright". So a clipped sample counts only where the prediction Ax
stays below it: the objective is convex, quadratic in pieces, and differentiable. Newton's method solves it: with the
samples that count now, weighted least squares are solved by conjugate gradients, and those that count are found again,
until they no longer change (Mangasarian, "A finite Newton method for classification", Optimization Methods and Software
17, 2002, on problems of this form; light in place of classes).
"""

from __future__ import annotations

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
MAX_ROUNDS = 40
NEWTON_ACCURACY = 0.1
DEFAULT_TOLERANCE = 3e-5
"""The certificate at which it ends where none was given: nearer to the solution nothing changes that one would see."""


class SelectedSamples(LinearOperator):
    """A followed by a mask: samples that do not count are zero.

    Args:
        operator: A.
        counts: which samples do, shape `(*batch, *operator.output_shape)`.
    """

    def __init__(self, operator: LinearOperator, counts: Tensor) -> None:
        self.input_shape, self.output_shape = operator.input_shape, operator.output_shape
        self._operator, self._counts = operator, counts

    def forward(self, x: Tensor) -> Tensor:
        """Apply to `x` of shape `(*batch, *input_shape)`."""
        return torch.where(self._counts, self._operator.forward(x), 0)

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the transpose to `y` of shape `(*batch, *output_shape)`."""
        return self._operator.adjoint(torch.where(self._counts, y, 0))


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
        Its certificate is ‖Aᴴr − λσ²max·LᴴLx‖ / ‖Aᴴy‖, with r zero at bounds that are kept.
    """
    preconditioner, history = TorusPreconditioner(problem), list[float]()
    x = preconditioner.estimate(y)
    counts = counting_samples(problem, y, is_clipped, x)
    status, certificate = Status.CONVERGED, _certificate(problem, y, counts, x)
    for _ in range(MAX_ROUNDS):
        operator = SelectedSamples(problem.operator, counts)
        equations = NormalEquations(operator, torch.where(counts, y, 0), problem.penalty_operator, problem.weight)
        # There is no use in solving exactly what the next round poses anew.
        accuracy = max(rule.tolerance, NEWTON_ACCURACY * certificate)
        left = StoppingRule(accuracy, max(rule.max_iterations - len(history), 1))
        found = iterate(equations, left, start=x, preconditioner=preconditioner, progress=progress)
        x, history = found.value, [*history, *found.residual_norms]
        counts = counting_samples(problem, y, is_clipped, x)
        certificate = _certificate(problem, y, counts, x)
        if certificate <= rule.tolerance or len(history) >= rule.max_iterations:
            break
    if certificate > rule.tolerance:
        is_spent = len(history) >= rule.max_iterations
        status = Status.MAX_ITERATIONS if is_spent else Status.STAGNATED
    return Solution(x, status, len(history), certificate, tuple(history), OBJECTIVE)


def counting_samples(problem: TikhonovProblem, y: Tensor, is_clipped: Tensor, x: Tensor) -> Tensor:
    """Find the samples that count: all that are not clipped, and bounds that Ax is below."""
    return ~is_clipped | (problem.operator.forward(x) < y)


def _certificate(problem: TikhonovProblem, y: Tensor, counts: Tensor, x: Tensor) -> float:
    residual = torch.where(counts, y - problem.operator.forward(x), 0)
    equations = NormalEquations(problem.operator, y, problem.penalty_operator, problem.weight)
    gradient = equations.remaining(x, residual)
    return synchronize.as_number(relative(equations.norm(gradient), equations.scale).max())
