"""Krylov methods: conjugate gradients for least squares (CGLS) and for small systems, and GMRES.

CGLS runs on the normal equations without forming AᴴA (Björck, Numerical Methods for Least Squares Problems, 1996,
section 7.4); the residual is kept in the data space, where it loses no digits. Every image of a batch, and every
right-hand side of a system, has its own step lengths, so that a batch gives the same as its members one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import accumulation_dtype, as_factor, inner, safe_ratio
from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.solvers.normal_equations import NormalEquations, refine_equations
from deconv_cli.solvers.solution import GradientLog, Progress, Solution, StoppingRule

# A gradient that grows by this factor shows that rounding dominates the recurrence.
DIVERGED = 1e4
# A probe is solved until less than this part is left of what random numbers hold of one mode.
PROBE_ACCURACY = 0.1
MAX_PROBE_ITERATIONS = 2000


def iterate(
    equations: NormalEquations,
    rule: StoppingRule,
    *,
    start: Tensor | None = None,
    preconditioner: LinearOperator | None = None,
    progress: Progress | None = None,
    ritz: RitzValues | None = None,
) -> Solution:
    """Solve normal equations from a start, by default zero; see `refine_equations`.

    A zero start without a preconditioner stays in the range of Aᴴ: for μ = 0 it leads to the solution of least norm.
    The preconditioner is symmetric positive definite, and close to the inverse of AᴴA + μLᴴL. With `ritz` the distance
    to the minimizer is also bounded or estimated, by what it knows, and iterated until it is small.
    """
    known, distance = ritz or RitzValues(preconditioner), None if ritz is None else ritz.distance

    def improve(equations: NormalEquations, x: Tensor, gradient: Tensor, log: GradientLog) -> Tensor:
        return _run(equations, x, gradient, preconditioner, log, known)

    return refine_equations(equations, equations.zero() if start is None else start, rule, improve, progress, distance)


class RitzValues:
    """Knowledge of conjugate gradients about the smallest eigenvalue of M H, M the preconditioner and H = AᴴA + μLᴴL.

    Their coefficients are those of the Lanczos process (Meurant, The Lanczos and Conjugate Gradient Algorithms, 2006,
    section 2.3), whose tridiagonal matrix is T = LDLᵀ with D = diag(1/α_k) and L unit bidiagonal with entries √β_k. So
    tr T⁻¹ = Σ α_k s_k with s_0 = 1, s_(k+1) = 1 + β_k s_k, and 1 / tr T⁻¹ is a lower bound of the smallest Ritz value.
    That itself is not below the smallest eigenvalue, so the result is an estimate.

    Args:
        preconditioner: M; `None` for the identity.
        least: estimates the smallest eigenvalue of H, for a start that is good enough as it is.
        determined: takes undetermined constants out of an image. If given, random numbers are solved for before a
            distance is estimated, since data hardly show what they leave undetermined.

    Attributes:
        inverse_trace: the largest tr T⁻¹ of all rounds, shape `(*batch,)`; `None` before the first.
    """

    def __init__(
        self,
        preconditioner: LinearOperator | None,
        least: Callable[[], float] | None = None,
        determined: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._preconditioner = preconditioner
        self._least = least
        self._determined = determined
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
        if self.inverse_trace is None and self._least is not None:
            return equations.distance(gradient, self._least())
        moved = gradient if self._preconditioner is None else self._preconditioner.forward(gradient)
        size = equations.norm(moved) + self._gain * torch.finfo(gradient.dtype).eps * equations.scale
        trace = self.inverse_trace
        return torch.where(size > 0, size * (math.inf if trace is None else trace), 0)

    def _probe(self, equations: NormalEquations, determined: Callable[[Tensor], Tensor]) -> None:
        """Solve for random numbers, until their part in any single mode is resolved."""
        wide = equations.in_float64() or equations
        shape = wide.operator.input_shape
        right = determined(synchronize.normal_numbers(wide.y, shape, seed=0))
        probe = replace(wide, y=wide.y.new_zeros(wide.operator.output_shape), g=right)
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


Action = Callable[[Tensor], Tensor]
"""A linear map of vectors `(B, n)`."""
Watch = Callable[[Tensor], bool]
"""Takes the norm of the residual, shape `(B,)`, after every iteration; returns whether to go on."""

# A cycle of GMRES that does not bring the residual below this part of what it was is the last.
MIN_GAIN = 0.9
# A residual that grows by this factor shows that rounding dominates the recurrence.
SYSTEM_DIVERGED = 100.0


def solve_definite(
    apply: Action,
    precondition: Action,
    right: Tensor,
    watch: Watch,
    measure: Action | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Solve a symmetric positive definite system by preconditioned conjugate gradients.

    Hestenes and Stiefel, Methods of conjugate gradients for solving linear systems, 1952; preconditioned as in Saad,
    Iterative Methods for Sparse Linear Systems, 2003, algorithm 9.1.

    The right-hand sides `(B, n)` are overwritten to save memory. `watch` decides when to stop, from `measure` of the
    residual, by default its norm. The solution is added to `start` in place, zeros by
    default; if `start` is an estimate, `right` must be its residual.
    """
    x = torch.zeros_like(right) if start is None else start
    residual = right
    z = precondition(residual)
    gamma = dot(residual, z)
    direction = z.clone() if z is residual else z
    del z
    goes_on, least = gamma > 0, torch.full_like(gamma, math.inf)
    while synchronize.holds_anywhere(goes_on):
        image = apply(direction)
        # Beyond what rounding allows the recurrence diverges: what is lost stays as it is.
        alpha = torch.where(goes_on, safe_ratio(gamma, dot(direction, image)), 0).to(right.dtype)[:, None]
        x.addcmul_(alpha, direction)
        residual.addcmul_(alpha, image, value=-1)
        del image
        remaining = measure(residual) if measure is not None else dot(residual, residual).sqrt()
        if not watch(remaining):
            break
        least = torch.minimum(least, remaining)
        goes_on = goes_on & (remaining <= SYSTEM_DIVERGED * least)
        z = precondition(residual)
        previous, gamma = gamma, dot(residual, z)
        direction = direction.mul_(safe_ratio(gamma, previous).to(right.dtype)[:, None]).add_(z)
        del z
    return x


def solve_indefinite(apply: Action, precondition: Action, right: Tensor, watch: Watch, n_vectors: int) -> Tensor:
    """Solve any system by GMRES, preconditioned from the right and started again after `n_vectors` iterations.

    Saad, A flexible inner-outer preconditioned GMRES algorithm, SIAM Journal on Scientific Computing 14, 1993: the
    preconditioner may be an iteration itself, and differ from vector to vector. The basis is orthogonalized
    twice by the classical process, which keeps it orthogonal to rounding. Arguments as for `solve_definite`.
    """
    x, residual, going = torch.zeros_like(right), right, True
    while going:
        correction, going = _cycle(apply, precondition, residual, watch, n_vectors)
        x = x + correction
        if going:
            residual = right - apply(x)
    return x


def _cycle(apply: Action, precondition: Action, residual: Tensor, watch: Watch, n_vectors: int) -> tuple[Tensor, bool]:
    """Run one cycle; returns the correction, and whether to go on: only if it has brought the residual down."""
    wide = accumulation_dtype(residual)
    n_batch, n_unknowns = residual.shape
    beta = residual.norm(dim=-1)
    # Allocated at once, but touched as it fills up.
    basis = residual.new_empty(n_batch, n_vectors + 1, n_unknowns)
    basis[:, 0] = residual / _nonzero(beta)[:, None]
    # The Hessenberg matrix is made triangular by rotations, whose product is stored.
    rotation = torch.eye(n_vectors + 1, dtype=wide, device=residual.device).repeat(n_batch, 1, 1)
    triangle = rotation.new_zeros(n_batch, n_vectors, n_vectors)
    reduced = rotation.new_zeros(n_batch, n_vectors + 1)
    reduced[:, 0] = beta
    moved: list[Tensor] = []
    n = 0
    going = synchronize.holds_anywhere(beta > 0)
    while going and n < n_vectors:
        stored = basis[:, : n + 1]
        moved.append(precondition(stored[:, n]))
        vector = apply(moved[n])
        height = (stored @ vector[..., None])[..., 0]
        vector = vector - (height[:, None] @ stored)[:, 0]
        again = (stored @ vector[..., None])[..., 0]
        vector = vector - (again[:, None] @ stored)[:, 0]
        below = vector.norm(dim=-1)
        basis[:, n + 1] = vector / _nonzero(below)[:, None]
        column = (rotation[:, : n + 1, : n + 1] @ (height + again).to(wide)[..., None])[..., 0]
        length = torch.hypot(column[:, n], below.to(wide))
        cosine, sine = column[:, n] / _nonzero(length), below.to(wide) / _nonzero(length)
        turn = torch.stack([torch.stack([cosine, sine], -1), torch.stack([-sine, cosine], -1)], -2)
        rotation[:, n : n + 2] = turn @ rotation[:, n : n + 2]
        reduced[:, n : n + 2] = (turn @ reduced[:, n : n + 2, None])[..., 0]
        triangle[:, :n, n], triangle[:, n, n] = column[:, :n], length
        n += 1
        going = watch(reduced[:, n].abs())
    if n == 0:
        return torch.zeros_like(residual), False
    triangle = triangle[:, :n, :n]
    # A right-hand side that was done before the others has zeros on the diagonal, and no part in what follows.
    idle = triangle.diagonal(dim1=-2, dim2=-1) == 0
    triangle.diagonal(dim1=-2, dim2=-1).add_(idle.to(wide))
    weights = torch.linalg.solve_triangular(triangle, reduced[:, :n, None], upper=True)
    weights = torch.where(idle[..., None], 0, weights).to(residual.dtype)
    combined = torch.zeros_like(residual)
    for k, direction in enumerate(moved):
        combined.addcmul_(weights[:, k], direction)
    return combined, going and synchronize.holds_anywhere(reduced[:, n].abs() < MIN_GAIN * beta)


def _nonzero(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Compute inner products of vectors `(B, n)`, added up in double precision where the device has it."""
    return inner(a, b, 1)
