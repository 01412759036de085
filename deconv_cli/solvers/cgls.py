"""Preconditioned conjugate gradients for least squares (CGLS).

Björck, Numerical Methods for Least Squares Problems, 1996, section 7.4: conjugate gradients on the normal equations
that never form AᴴA; the residual is kept in the data space, where it loses no digits. Every image of a batch has its
own step lengths, so that a batch gives what its images would give one by one.
"""

from __future__ import annotations

from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.solvers.normal_equations import NormalEquations
from deconv_cli.solvers.problem import TikhonovProblem, inner, norm
from deconv_cli.solvers.refinement import Course, Progress, StoppingRule, refine_equations, step
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
    """Solve the problem for data `y` of shape `(*batch, C_out, H_y, W_y)`; see `iterate`."""
    return iterate(
        NormalEquations.of_data(problem, y), rule, start=start, preconditioner=preconditioner, progress=progress
    )


def iterate(
    equations: NormalEquations,
    rule: StoppingRule,
    *,
    start: Tensor | None = None,
    preconditioner: LinearOperator | None = None,
    progress: Progress | None = None,
) -> Solution:
    """Solve normal equations.

    A zero start without a preconditioner stays in the range of Aᴴ: for μ = 0 it leads to the solution of least norm.

    Args:
        equations: what to solve.
        rule: when to stop.
        start: first estimate, shape `(*batch, *operator.input_shape)`; zero if not given.
        preconditioner: symmetric positive definite, close to the inverse of AᴴA + μLᴴL.
        progress: told of every iteration.
    """

    def improve(x: Tensor, gradient: Tensor, course: Course) -> Tensor:
        return _run(equations, x, gradient, preconditioner, course)

    return refine_equations(equations, equations.zero() if start is None else start, rule, improve, progress)


def _run(
    equations: NormalEquations, x: Tensor, gradient: Tensor, preconditioner: LinearOperator | None, course: Course
) -> Tensor:
    residual = equations.residual(x)
    z = gradient if preconditioner is None else preconditioner.forward(gradient)
    direction, gamma = z, inner(gradient, z)
    while not course.is_spent:
        image = equations.operator.forward(direction)
        alpha = _as_factor(step(gamma, equations.curvature(direction, image)), x)
        x = x + alpha * direction
        residual = residual - alpha * image
        gradient = equations.remaining(x, residual)
        remaining = norm(gradient)
        course.note(remaining)
        if synchronize.holds_everywhere(remaining <= course.goal):
            break
        z = gradient if preconditioner is None else preconditioner.forward(gradient)
        previous, gamma = gamma, inner(gradient, z)
        direction = z + _as_factor(step(gamma, previous), x) * direction
    return x


def _as_factor(ratio: Tensor, like: Tensor) -> Tensor:
    return ratio.to(like.dtype)[..., None, None, None]
