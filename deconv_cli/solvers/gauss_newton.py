"""Nonlinear least squares, ½‖F(x) − y‖² + ½μ‖Lx‖², by inexact Gauss–Newton steps with a line search.

Every step minimizes the linearized problem by conjugate gradients, only as far as the gradient has come down already
(Dembo, Eisenstat and Steihaug, Inexact Newton methods, SIAM Journal on Numerical Analysis 19, 1982); a truncated step
still leads downhill, and is halved until it does so by Armijo's rule (Nocedal and Wright, Numerical Optimization, 2006,
chapters 3 and 10). For a linear F it is conjugate gradients, started again a few times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.linear_operator import Function, Linearization, LinearOperator
from deconv_cli.solvers.cgls import iterate
from deconv_cli.solvers.iteration_log import IterationLog, Progress, StoppingRule
from deconv_cli.solvers.normal_equations import NormalEquations
from deconv_cli.solvers.norms import accumulation_dtype, as_factor, inner, norm, relative, safe_ratio
from deconv_cli.solvers.solution import Solution, Status

OBJECTIVE = "½‖F(x) − y‖² + ½λσ²max‖Lx‖²"
LARGEST_REST = 0.1
"""A step leaves at most this part of the gradient of its linearized problem."""
ARMIJO = 1e-4
MAX_HALVINGS = 40
PATIENCE = 6
"""So many steps in a row that do not halve the certificate end the iteration."""


@dataclass(frozen=True)
class NonlinearProblem:
    """The problem: the function F on batches, the data y, the penalty L (`None` where μ = 0) and its weight μ."""

    function: Function
    y: Tensor
    penalty: LinearOperator | None = None
    weight: float = 0.0

    def residual(self, x: Tensor) -> Tensor:
        """Compute y − F(x)."""
        with torch.no_grad():
            return self.y - self.function(x[None])[0]

    def penalty_gradient(self, x: Tensor) -> Tensor:
        """Compute μLᵀLx."""
        return torch.zeros_like(x) if self.penalty is None else self.weight * self.penalty.gram.forward(x)


@dataclass(frozen=True)
class _Point:
    """An estimate, its residual y − F(x), and the penalized Lx; `None` without a penalty."""

    x: Tensor
    residual: Tensor
    penalized: Tensor | None

    @classmethod
    def at(cls, problem: NonlinearProblem, x: Tensor) -> _Point:
        penalized = None if problem.penalty is None else problem.penalty.forward(x)
        return cls(x, problem.residual(x), penalized)

    @property
    def is_finite(self) -> bool:
        return synchronize.holds_everywhere(torch.isfinite(self.residual))

    def decrease_to(self, other: _Point, weight: float) -> float:
        """Compute by how much the objective is lower at another point, without the difference of two large sums."""
        total = _dot(self.residual - other.residual, self.residual + other.residual)
        if self.penalized is not None and other.penalized is not None:
            total += weight * _dot(self.penalized - other.penalized, self.penalized + other.penalized)
        return 0.5 * total


def solve_nonlinear(
    problem: NonlinearProblem,
    start: Tensor,
    rule: StoppingRule,
    progress: Progress | None = None,
) -> Solution:
    """Minimize from a start, an image without a batch axis at which F is finite.

    The certificate is ‖Jᵀ(y − F(x)) − μLᵀLx‖ / ‖Jᵀy‖ with the derivative J at x: 0 where no small change of x makes the
    objective less. It says nothing of other minima.

    Args:
        problem: what to minimize.
        start: first estimate. From zero and with μ = 0, a linear F is solved with least norm.
        rule: when to stop; the iterations are those of conjugate gradients and the steps together.
        progress: called after every step.
    """
    log, point = IterationLog(rule, progress), _Point.at(problem, start)
    while True:
        jacobian = Linearization(problem.function, point.x)
        gradient = jacobian.adjoint(point.residual) - problem.penalty_gradient(point.x)
        n_dims = gradient.ndim
        certificate = synchronize.as_number(relative(norm(gradient, n_dims), norm(jacobian.adjoint(problem.y), n_dims)))
        status = _ending(log, certificate)
        if status is None:
            step = _linearized_step(problem, point, jacobian, gradient, certificate, log)
            found = _search(problem, point, step, synchronize.as_number(inner(gradient, step, n_dims)))
            if found is not None:
                point = found
                log.record(certificate)
                continue
            status = Status.LOCAL_MINIMUM
        return Solution(point.x, status, log.n_iterations, certificate, (*log.history, certificate), OBJECTIVE)


def _ending(log: IterationLog, certificate: float) -> Status | None:
    """Tell how the iteration ends here, or that it goes on."""
    if certificate <= log.rule.tolerance:
        return Status.CONVERGED
    if not math.isfinite(certificate):
        return Status.LOCAL_MINIMUM
    if log.is_spent:
        return Status.TIME_LIMIT if log.rule.is_overdue else Status.MAX_ITERATIONS
    best_before = min(log.history[:-PATIENCE], default=math.inf)
    return Status.LOCAL_MINIMUM if min([*log.history[-PATIENCE:], certificate]) > 0.5 * best_before else None


def _linearized_step(
    problem: NonlinearProblem,
    point: _Point,
    jacobian: LinearOperator,
    gradient: Tensor,
    certificate: float,
    log: IterationLog,
) -> Tensor:
    """Minimize ½‖Jd − (y − F(x))‖² + ½μ‖L(x + d)‖² over d, as far as it pays."""
    rest = min(LARGEST_REST, max(certificate, 0.5 * log.rule.tolerance / certificate))
    g = None if problem.penalty is None else -problem.penalty_gradient(point.x)
    equations = NormalEquations(jacobian, point.residual, problem.penalty, problem.weight, g=g)
    found = iterate(equations, log.rest(rest))
    log.n_inner += found.n_iterations
    if synchronize.holds_anywhere(found.value != 0):
        return found.value
    # Conjugate gradients that were cut short may have left no better gradient; steepest descent still leads on.
    curvature = equations.curvature(gradient, jacobian.forward(gradient))
    return (
        as_factor(safe_ratio(inner(gradient, gradient, gradient.ndim), curvature), gradient, gradient.ndim) * gradient
    )


def _search(problem: NonlinearProblem, point: _Point, step: Tensor, slope: float) -> _Point | None:
    """Halve a step until it leads downhill; `None` where it never does."""
    size = 1.0
    # What rounding of F leaves of a decrease: at a solution the last steps are smaller than that.
    sizes = _dot(problem.y, problem.y) ** 0.5 * _dot(point.residual, point.residual) ** 0.5
    rounding = 4 * torch.finfo(step.dtype).eps * sizes
    for _ in range(MAX_HALVINGS):
        other = _Point.at(problem, point.x + size * step)
        if other.is_finite and point.decrease_to(other, problem.weight) >= ARMIJO * size * slope - rounding:
            return other
        size *= 0.5
    return None


def _dot(a: Tensor, b: Tensor) -> float:
    return synchronize.as_number((a * b).sum(dtype=accumulation_dtype(a)))
