"""Preconditioned conjugate gradients for least squares (CGLS).

Björck, Numerical Methods for Least Squares Problems, 1996, section 7.4: conjugate gradients on the normal equations
that never form AᴴA; the residual is kept in the data space, where it loses no digits. Every image of a batch has its
own step lengths, so that a batch gives what its images would give one by one.
"""

from __future__ import annotations

from torch import Tensor

from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.solvers.problem import TikhonovProblem, accumulation_dtype, inner, norm
from deconv_cli.solvers.refinement import Course, Progress, StoppingRule, refine, step
from deconv_cli.solvers.solution import Solution


def conjugate_gradients(
    problem: TikhonovProblem,
    y: Tensor,
    rule: StoppingRule,
    *,
    start: Tensor | None = None,
    preconditioner: LinearOperator | None = None,
    progress: Progress | None = None,
) -> Solution:
    """Solve the problem for the data `y`.

    A zero start without a preconditioner stays in the range of Aᴴ: for λ = 0 it leads to the solution of least norm.

    Args:
        problem: what to solve.
        y: data, shape `(*batch, C_out, H_y, W_y)`.
        rule: when to stop.
        start: first estimate, shape `(*batch, C_in, H, W)`; zero if not given.
        preconditioner: symmetric positive definite, close to the inverse of AᴴA + λσ²max·LᴴL.
        progress: told of every iteration.
    """
    if start is None:
        start = y.new_zeros(*y.shape[:-3], *problem.operator.input_shape)

    def improve(x: Tensor, gradient: Tensor, course: Course) -> Tensor:
        return _run(problem, y, x, gradient, preconditioner, course)

    return refine(problem, y, start, rule, improve, progress)


def _run(
    problem: TikhonovProblem,
    y: Tensor,
    x: Tensor,
    gradient: Tensor,
    preconditioner: LinearOperator | None,
    course: Course,
) -> Tensor:
    residual = y - problem.operator.forward(x)
    z = gradient if preconditioner is None else preconditioner.forward(gradient)
    direction, gamma = z, inner(gradient, z)
    while not course.is_spent:
        image = problem.operator.forward(direction)
        curvature = inner(image, image)
        if problem.weight > 0:
            penalized = problem.penalty_operator.forward(direction)
            curvature = curvature + problem.weight * _squared_norm(penalized, direction.ndim)
        alpha = _as_factor(step(gamma, curvature), x)
        x = x + alpha * direction
        residual = residual - alpha * image
        gradient = problem.negative_gradient(x, residual)
        remaining = norm(gradient)
        course.note(remaining)
        if bool((remaining <= course.goal).all()):
            break
        z = gradient if preconditioner is None else preconditioner.forward(gradient)
        previous, gamma = gamma, inner(gradient, z)
        direction = z + _as_factor(step(gamma, previous), x) * direction
    return x


def _squared_norm(a: Tensor, n_image_axes: int) -> Tensor:
    """Square norm over everything but the batch; L may have added an axis ahead of the channels."""
    axes = tuple(range(-3 - (a.ndim - n_image_axes), 0))
    return a.square().sum(dim=axes, dtype=accumulation_dtype(a))


def _as_factor(ratio: Tensor, like: Tensor) -> Tensor:
    return ratio.to(like.dtype)[..., None, None, None]
