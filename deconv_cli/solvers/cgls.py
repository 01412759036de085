"""Preconditioned conjugate gradients for least squares (CGLS), on the normal equations without forming AᴴA.

Björck, Numerical Methods for Least Squares Problems, 1996, section 7.4; the residual is kept in the data space, where
it loses no digits. Every image of a batch has its own step lengths, so that a batch gives what its images would give
one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.solvers.iteration_log import GradientLog, Progress, StoppingRule
from deconv_cli.solvers.normal_equations import NormalEquations, refine_equations
from deconv_cli.solvers.norms import as_factor, inner, safe_ratio
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solution import Solution

# A gradient so many times as large as it was before shows that the recurrence has lost the truth to rounding.
DIVERGED = 1e4


def conjugate_gradients(
    problem: TikhonovProblem,
    y: Tensor,
    rule: StoppingRule,
    *,
    start: Tensor | None = None,
    preconditioner: LinearOperator | None = None,
    is_inverse: bool = False,
    progress: Progress | None = None,
) -> Solution:
    """Solve the problem for data `y` of shape `(*batch, C_out, *output_size)`, and bound the error; see `iterate`."""
    return iterate(
        NormalEquations.of_data(problem, y),
        rule,
        start=start,
        preconditioner=preconditioner,
        is_inverse=is_inverse,
        progress=progress,
        bounds_distance=problem.weight > 0,
        least=lambda: problem.weight / problem.lam / problem.condition,
    )


def iterate(
    equations: NormalEquations,
    rule: StoppingRule,
    *,
    start: Tensor | None = None,
    preconditioner: LinearOperator | None = None,
    is_inverse: bool = False,
    progress: Progress | None = None,
    bounds_distance: bool = False,
    least: Callable[[], float] | None = None,
) -> Solution:
    """Solve normal equations.

    A zero start without a preconditioner stays in the range of Aᴴ: for μ = 0 it leads to the solution of least norm.

    Args:
        equations: what to solve.
        rule: when to stop.
        start: first estimate, shape `(*batch, *operator.input_shape)`; zero if not given.
        preconditioner: symmetric positive definite, close to the inverse of AᴴA + μLᴴL.
        is_inverse: the preconditioner is that inverse but for rounding and corners, so that a distance may be estimated
            by it alone.
        progress: called after every iteration.
        bounds_distance: also bound, or estimate, how far the estimate is from the minimizer, and iterate until it is
            near.
        least: estimates the smallest eigenvalue of AᴴA + μLᴴL, for a start that is good enough as it is.
    """
    ritz = RitzValues(preconditioner, 1.0 if is_inverse else math.inf, least)

    def improve(equations: NormalEquations, x: Tensor, gradient: Tensor, log: GradientLog) -> Tensor:
        return _run(equations, x, gradient, preconditioner, log, ritz)

    distance = ritz.distance if bounds_distance else None
    return refine_equations(equations, equations.zero() if start is None else start, rule, improve, progress, distance)


class RitzValues:
    """What conjugate gradients learn of the smallest eigenvalue of M H, M the preconditioner and H = AᴴA + μLᴴL.

    Their coefficients are those of the Lanczos process (Meurant, The Lanczos and Conjugate Gradient Algorithms, 2006,
    section 2.3), whose tridiagonal matrix is T = LDLᵀ with D = diag(1/α_k) and L unit bidiagonal with entries √β_k. So
    tr T⁻¹ = Σ α_k s_k with s_0 = 1, s_(k+1) = 1 + β_k s_k, and 1 / tr T⁻¹ is a lower bound of the smallest Ritz value.
    That itself is not below the smallest eigenvalue: what follows from it is an estimate.

    Attributes:
        inverse_trace: the largest tr T⁻¹ of all rounds, shape `(*batch,)`; `None` before the first, when a number that
            was given stands for it.
    """

    def __init__(
        self, preconditioner: LinearOperator | None, at_first: float, least: Callable[[], float] | None = None
    ) -> None:
        self._preconditioner = preconditioner
        self._at_first = at_first
        self._least = least
        self.inverse_trace: Tensor | None = None

    def add(self, inverse_trace: Tensor) -> None:
        """Take note of one round."""
        before = self.inverse_trace
        self.inverse_trace = inverse_trace if before is None else torch.maximum(before, inverse_trace)

    def distance(self, equations: NormalEquations, gradient: Tensor) -> Tensor:
        """Bound ‖x − x*‖ by ‖gradient‖/μ where L is the identity, else estimate it by ‖M gradient‖ · tr T⁻¹.

        Args:
            equations: with μ > 0.
            gradient: at x, shape `(*batch, *operator.input_shape)`.
        """
        if equations.least_curvature is not None:
            return equations.distance(gradient, equations.least_curvature)
        if self.inverse_trace is None and self._least is not None and self._at_first == math.inf:
            return equations.distance(gradient, self._least())
        moved = gradient if self._preconditioner is None else self._preconditioner.forward(gradient)
        size, trace = equations.norm(moved), self.inverse_trace
        return torch.where(size > 0, size * (self._at_first if trace is None else trace), 0)


def _run(
    equations: NormalEquations,
    x: Tensor,
    gradient: Tensor,
    preconditioner: LinearOperator | None,
    log: GradientLog,
    ritz: RitzValues,
) -> Tensor:
    n_dims = equations.n_dims
    residual = equations.residual(x)
    z = gradient if preconditioner is None else preconditioner.forward(gradient)
    direction, gamma = z, inner(gradient, z, n_dims)
    s, trace = torch.ones_like(gamma), torch.zeros_like(gamma)
    least = equations.norm(gradient)
    goes_on = least > log.goal
    while not log.is_spent:
        image = equations.operator.forward(direction)
        # Beyond what rounding allows the recurrence diverges: an image that is done, or lost, stays as it is.
        alpha = torch.where(goes_on, safe_ratio(gamma, equations.curvature(direction, image)), 0)
        trace = trace + alpha * s
        x = x + as_factor(alpha, x, n_dims) * direction
        residual = residual - as_factor(alpha, residual, residual.ndim - gamma.ndim) * image
        gradient = equations.remaining(x, residual)
        remaining = equations.norm(gradient)
        log.add(remaining)
        least = torch.minimum(least, remaining)
        goes_on = goes_on & (remaining > log.goal) & (remaining <= DIVERGED * least)
        if not synchronize.holds_anywhere(goes_on):
            break
        z = gradient if preconditioner is None else preconditioner.forward(gradient)
        previous, gamma = gamma, inner(gradient, z, n_dims)
        beta = safe_ratio(gamma, previous)
        s = 1 + beta * s
        direction = z + as_factor(beta, x, n_dims) * direction
    ritz.add(trace)
    return x
