"""Preconditioned conjugate gradients for least squares (CGLS), on the normal equations without forming AᴴA.

Björck, Numerical Methods for Least Squares Problems, 1996, section 7.4; the residual is kept in the data space, where
it loses no digits. Every image of a batch has its own step lengths, so that a batch gives the same as its images one by
one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import as_factor, inner, safe_ratio
from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.solvers.normal_equations import NormalEquations, refine_equations
from deconv_cli.solvers.problem import MIN_LAMBDA_IN_FLOAT32, TikhonovProblem
from deconv_cli.solvers.solution import GradientLog, Progress, Solution, StoppingRule

# A gradient that grows by this factor shows that rounding dominates the recurrence.
DIVERGED = 1e4
# A probe is solved until less than this part is left of what random numbers hold of one mode.
PROBE_ACCURACY = 0.1
MAX_PROBE_ITERATIONS = 2000


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
    ritz = RitzValues(
        preconditioner,
        1.0 if is_inverse else math.inf,
        least=lambda: problem.weight / problem.lam / problem.condition,
        determined=(lambda x: problem.split_null_space(x)[0]) if 0 < problem.lam < MIN_LAMBDA_IN_FLOAT32 else None,
    )
    return iterate(
        NormalEquations.of_data(problem, y),
        rule,
        start=start,
        preconditioner=preconditioner,
        progress=progress,
        bounds_distance=problem.weight > 0,
        ritz=ritz,
    )


def iterate(
    equations: NormalEquations,
    rule: StoppingRule,
    *,
    start: Tensor | None = None,
    preconditioner: LinearOperator | None = None,
    progress: Progress | None = None,
    bounds_distance: bool = False,
    ritz: RitzValues | None = None,
) -> Solution:
    """Solve normal equations.

    A zero start without a preconditioner stays in the range of Aᴴ: for μ = 0 it leads to the solution of least norm.

    Args:
        equations: the equations.
        rule: when to stop.
        start: first estimate, shape `(*batch, *operator.input_shape)`; zero if not given.
        preconditioner: symmetric positive definite, close to the inverse of AᴴA + μLᴴL.
        progress: called after every iteration.
        bounds_distance: also bound, or estimate, the distance to the minimizer, and iterate until it is small.
        ritz: prior knowledge of the eigenvalues.
    """
    ritz = ritz or RitzValues(preconditioner, math.inf)

    def improve(equations: NormalEquations, x: Tensor, gradient: Tensor, log: GradientLog) -> Tensor:
        return _run(equations, x, gradient, preconditioner, log, ritz)

    distance = ritz.distance if bounds_distance else None
    return refine_equations(equations, equations.zero() if start is None else start, rule, improve, progress, distance)


class RitzValues:
    """Knowledge of conjugate gradients about the smallest eigenvalue of M H, M the preconditioner and H = AᴴA + μLᴴL.

    Their coefficients are those of the Lanczos process (Meurant, The Lanczos and Conjugate Gradient Algorithms, 2006,
    section 2.3), whose tridiagonal matrix is T = LDLᵀ with D = diag(1/α_k) and L unit bidiagonal with entries √β_k. So
    tr T⁻¹ = Σ α_k s_k with s_0 = 1, s_(k+1) = 1 + β_k s_k, and 1 / tr T⁻¹ is a lower bound of the smallest Ritz value.
    That itself is not below the smallest eigenvalue, so the result is an estimate.

    Args:
        preconditioner: M; `None` for the identity.
        at_first: tr T⁻¹ before the first round: 1 if M is nearly the inverse of H.
        least: estimates the smallest eigenvalue of H, for a start that is good enough as it is.
        determined: takes undetermined constants out of an image. If given, random numbers are solved for before a
            distance is estimated, since data hardly show what they leave undetermined.
        groups: leading axes of those numbers, for an operator whose images have a part for each group.

    Attributes:
        inverse_trace: the largest tr T⁻¹ of all rounds, shape `(*batch,)`; `None` before the first.
    """

    def __init__(
        self,
        preconditioner: LinearOperator | None,
        at_first: float,
        least: Callable[[], float] | None = None,
        determined: Callable[[Tensor], Tensor] | None = None,
        groups: tuple[int, ...] = (),
    ) -> None:
        self._preconditioner = preconditioner
        self._at_first = at_first
        self._least = least
        self._determined = determined
        self._groups = groups
        self._gain = 0.0
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
        if self._determined is not None:
            self._probe(equations, self._determined)
            self._determined = None
        if self.inverse_trace is None and self._least is not None and self._at_first == math.inf:
            return equations.distance(gradient, self._least())
        moved = gradient if self._preconditioner is None else self._preconditioner.forward(gradient)
        size = equations.norm(moved) + self._gain * torch.finfo(gradient.dtype).eps * equations.scale
        trace = self.inverse_trace
        return torch.where(size > 0, size * (self._at_first if trace is None else trace), 0)

    def _probe(self, equations: NormalEquations, determined: Callable[[Tensor], Tensor]) -> None:
        """Solve for random numbers, until their part in any single mode is resolved."""
        wide = equations.in_float64() or equations
        shape = (*self._groups, *wide.operator.input_shape)
        right = determined(synchronize.normal_numbers(wide.y, shape, seed=0))
        probe = replace(wide, y=wide.y.new_zeros((*self._groups, *wide.operator.output_shape)), g=right)
        log = GradientLog(StoppingRule(PROBE_ACCURACY / math.prod(shape) ** 0.5, MAX_PROBE_ITERATIONS), probe.scale)
        x = _run(probe, probe.zero(), right, self._preconditioner, log, self)
        is_resolved = probe.norm(determined(probe.remaining(x, probe.residual(x)))) <= 2 * log.goal
        moved = right if self._preconditioner is None else self._preconditioner.forward(right)
        gain = synchronize.as_number((probe.norm(moved) / probe.norm(right)).max())
        self._gain = gain if synchronize.holds_everywhere(is_resolved) else math.inf


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
