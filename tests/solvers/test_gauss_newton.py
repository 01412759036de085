"""Gauss–Newton steps, on problems whose minimum is known."""

from __future__ import annotations

import torch
from cases import random

from deconv_cli.operators.differences import Gradient
from deconv_cli.operators.linear_operator import Linearization
from deconv_cli.solvers.solution import Status, StoppingRule
from deconv_cli.solvers.solve import NonlinearProblem, solve_nonlinear

RULE = StoppingRule(1e-10, 2000)


def problem_of(tap, *, n_outputs=3, padding=2, weight=0.0):
    """A convolution of a function of the pixels, its output, and the image."""
    kernel = random((n_outputs, 1, 3, 3))
    x = 0.5 * random((1, 8, 7), seed=4)

    def function(images):
        return torch.nn.functional.conv2d(tap(images), kernel, padding=padding)

    penalty = Gradient(tuple(x.shape)) if weight else None
    return NonlinearProblem(function, function(x[None])[0], penalty, weight), x


def multiply(pixel):
    return pixel


def kink(pixel):
    return (pixel - 1).abs().sqrt()


def test_a_linear_map_gives_the_minimum_norm_solution():
    problem, x = problem_of(multiply, n_outputs=1, padding=0)
    found = solve_nonlinear(problem, torch.zeros_like(x), RULE)
    matrix = Linearization(problem.function, found.value).as_matrix()
    wanted = torch.linalg.pinv(matrix) @ problem.y.flatten()
    assert found.status is Status.CONVERGED
    assert float((found.value.flatten() - wanted).norm() / wanted.norm()) < 1e-9


def test_a_penalized_minimum_is_stationary():
    """Against the objective itself, differentiated by autograd."""
    problem, x = problem_of(torch.exp, weight=0.3)
    found = solve_nonlinear(problem, torch.zeros_like(x), RULE)
    x = found.value.clone().requires_grad_()
    penalized = problem.penalty.forward(x).square().sum()
    objective = 0.5 * (problem.function(x[None])[0] - problem.y).square().sum() + 0.5 * problem.weight * penalized
    (gradient,) = torch.autograd.grad(objective, x)
    scale = Linearization(problem.function, found.value).adjoint(problem.y).norm()
    assert found.status is Status.CONVERGED
    assert float(gradient.norm() / scale) < 1.1e-10
    assert abs(float(gradient.norm() / scale) - found.certificate) < 1e-12


def test_a_start_on_a_kink_is_no_descent():
    problem, x = problem_of(kink)
    found = solve_nonlinear(problem, torch.ones_like(x), RULE)
    assert found.status is Status.LOCAL_MINIMUM
    assert not found.status.is_success


def test_iterations_run_out():
    problem, x = problem_of(torch.exp)
    found = solve_nonlinear(problem, torch.zeros_like(x), StoppingRule(1e-10, 5))
    assert found.status is Status.MAX_ITERATIONS
    assert found.certificate > 1e-10
