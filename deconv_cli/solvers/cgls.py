"""Preconditioned conjugate gradients for least squares (CGLS).

Björck, Numerical Methods for Least Squares Problems, 1996, section 7.4: conjugate gradients on the normal equations
that never form AᴴA; the residual is kept in the data space, where it loses no digits. Every image of a batch has its
own step lengths, so that a batch gives what its images would give one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.solvers.problem import TikhonovProblem, inner, norm
from deconv_cli.solvers.solution import Solution, Status

Progress = Callable[[int, float], None]
"""Called after each iteration with its number and the certificate so far."""

MAX_RESTARTS = 8


@dataclass(frozen=True)
class ConjugateGradients:
    """Settings of the solver.

    Attributes:
        tolerance: the certificate to reach.
        max_iterations: iterations at most, restarts included.
    """

    tolerance: float
    max_iterations: int

    def solve(
        self,
        problem: TikhonovProblem,
        y: Tensor,
        *,
        start: Tensor | None = None,
        preconditioner: LinearOperator | None = None,
        progress: Progress | None = None,
    ) -> Solution:
        """Solve the problem for the data `y`.

        A zero start without a preconditioner stays in the range of Aᴴ: for λ = 0 it leads to the solution of least
        norm.

        Args:
            problem: what to solve.
            y: data, shape `(*batch, C_out, H_y, W_y)`.
            start: first estimate, shape `(*batch, C_in, H, W)`; zero if not given.
            preconditioner: symmetric positive definite, close to the inverse of AᴴA + λσ²max·LᴴL.
            progress: told of every iteration.
        """
        scale = norm(problem.operator.adjoint(y))
        goal = self.tolerance * scale
        x = y.new_zeros(*y.shape[:-3], *problem.operator.input_shape) if start is None else start
        history: list[float] = []
        status = Status.MAX_ITERATIONS
        best = _measure(problem, x, y)
        for _ in range(MAX_RESTARTS):
            # The recurrences drift from the truth in the last digits; a restart measures it anew.
            if bool((best <= goal).all()):
                status = Status.CONVERGED
                break
            if len(history) >= self.max_iterations:
                break
            candidate = self._run(problem, y, x, preconditioner, goal, scale, history, progress)
            reached = _measure(problem, candidate, y)
            improved = reached < best
            x = torch.where(improved[..., None, None, None], candidate, x)
            stuck = bool(((reached > 0.5 * best) & (best > goal)).any())
            best = torch.minimum(reached, best)
            if stuck and bool((best > goal).any()):
                status = Status.STAGNATED if len(history) < self.max_iterations else Status.MAX_ITERATIONS
                break
        else:
            status = Status.CONVERGED if bool((best <= goal).all()) else Status.STAGNATED
        certificate = float(_relative(best, scale).max())
        return Solution(x, status, len(history), certificate, tuple(history))

    def _run(
        self,
        problem: TikhonovProblem,
        y: Tensor,
        x: Tensor,
        preconditioner: LinearOperator | None,
        goal: Tensor,
        scale: Tensor,
        history: list[float],
        progress: Progress | None,
    ) -> Tensor:
        precondition = preconditioner.forward if preconditioner is not None else _unchanged
        residual = y - problem.operator.forward(x)
        gradient = problem.negative_gradient(x, residual)
        z = precondition(gradient)
        direction = z
        gamma = inner(gradient, z)
        while len(history) < self.max_iterations:
            image = problem.operator.forward(direction)
            curvature = inner(image, image)
            if problem.weight > 0:
                penalized = problem.penalty_operator.forward(direction)
                curvature = curvature + problem.weight * _squared_norm(penalized, direction.ndim)
            alpha = _step(gamma, curvature, x)
            x = x + alpha * direction
            residual = residual - alpha * image
            gradient = problem.negative_gradient(x, residual)
            size = norm(gradient)
            history.append(float(_relative(size, scale).max()))
            if progress is not None:
                progress(len(history), history[-1])
            if bool((size <= goal).all()):
                break
            z = precondition(gradient)
            previous, gamma = gamma, inner(gradient, z)
            direction = z + _step(gamma, previous, x) * direction
        return x


def _measure(problem: TikhonovProblem, x: Tensor, y: Tensor) -> Tensor:
    """Compute the norm of the gradient afresh, shape `(*batch,)`."""
    return norm(problem.negative_gradient(x, y - problem.operator.forward(x)))


def _squared_norm(a: Tensor, n_image_axes: int) -> Tensor:
    """Square norm over everything but the batch; L may have added an axis ahead of the channels."""
    axes = tuple(range(-3 - (a.ndim - n_image_axes), 0))
    return a.square().sum(dim=axes, dtype=torch.float64 if a.device.type != "mps" else a.dtype)


def _step(numerator: Tensor, denominator: Tensor, like: Tensor) -> Tensor:
    """Divide, giving 0 to images that are done already."""
    ratio = torch.where(denominator > 0, numerator / denominator.clamp_min(1e-300), 0)
    return ratio.to(like.dtype)[..., None, None, None]


def _relative(size: Tensor, scale: Tensor) -> Tensor:
    return torch.where(scale > 0, size / scale.clamp_min(1e-300), size)


def _unchanged(a: Tensor) -> Tensor:
    return a
