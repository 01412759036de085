"""Gauss–Newton steps, on problems whose minimum is known."""

from __future__ import annotations

import torch
from cases import random

from deconv_cli.operators.differences import Gradient
from deconv_cli.operators.tap_convolution import TapConvolution
from deconv_cli.solvers.gauss_newton import NonlinearProblem, solve_nonlinear, undetermined_share
from deconv_cli.solvers.iteration_log import StoppingRule
from deconv_cli.solvers.solution import Status

RULE = StoppingRule(1e-10, 2000)


def multiply(pixel, weight):
    return pixel * weight


def exponential(pixel, weight):
    return weight * torch.exp(pixel)


def kink(pixel, weight):
    return weight * (pixel - 1).abs().sqrt()


def problem_of(tap, *, n_outputs=3, padding="full", weight=0.0):
    operator = TapConvolution(tap, random((n_outputs, 1, 3, 3)), (8, 7), padding=padding)
    x = 0.5 * random(operator.input_shape, seed=4)
    penalty = Gradient(operator.input_shape) if weight else None
    return NonlinearProblem(operator, operator.forward(x), penalty, weight), x


def test_a_linear_map_gives_the_minimum_norm_solution():
    problem, _ = problem_of(multiply, n_outputs=1, padding="valid")
    found = solve_nonlinear(problem, torch.zeros(problem.operator.input_shape, dtype=torch.float64), RULE)
    matrix = problem.operator.linearize(found.value).as_matrix()
    wanted = torch.linalg.pinv(matrix) @ problem.y.flatten()
    assert found.status is Status.CONVERGED
    assert float((found.value.flatten() - wanted).norm() / wanted.norm()) < 1e-9


def test_a_penalized_minimum_is_stationary():
    """Against the objective itself, differentiated by autograd."""
    problem, _ = problem_of(exponential, weight=0.3)
    found = solve_nonlinear(problem, torch.zeros(problem.operator.input_shape, dtype=torch.float64), RULE)
    x = found.value.clone().requires_grad_()
    penalized = problem.penalty.forward(x).square().sum()
    objective = 0.5 * (problem.operator.forward(x) - problem.y).square().sum() + 0.5 * problem.weight * penalized
    (gradient,) = torch.autograd.grad(objective, x)
    scale = problem.operator.linearize(found.value).adjoint(problem.y).norm()
    assert found.status is Status.CONVERGED
    assert float(gradient.norm() / scale) < 1.1e-10
    assert abs(float(gradient.norm() / scale) - found.certificate) < 1e-12


def test_an_exponential_is_undone():
    problem, x = problem_of(exponential)
    found = solve_nonlinear(problem, torch.zeros_like(x), RULE)
    assert found.status is Status.CONVERGED
    assert float((found.value - x).abs().max()) < 1e-8


def test_a_start_on_a_kink_is_no_descent():
    problem, x = problem_of(kink)
    found = solve_nonlinear(problem, torch.ones_like(x), RULE)
    assert found.status is Status.NO_DESCENT
    assert not found.status.is_success


def test_iterations_run_out():
    problem, x = problem_of(exponential)
    found = solve_nonlinear(problem, torch.zeros_like(x), StoppingRule(1e-10, 5))
    assert found.status is Status.MAX_ITERATIONS
    assert found.certificate > 1e-10


def test_the_undetermined_share_is_the_dimension_of_the_null_space():
    for n_outputs, padding in ((1, "valid"), (3, "full")):
        problem, x = problem_of(multiply, n_outputs=n_outputs, padding=padding)
        jacobian = problem.operator.linearize(x)
        rank = int(torch.linalg.matrix_rank(jacobian.as_matrix()))
        share = undetermined_share(jacobian, x, RULE)
        assert abs(share - (1 - rank / x.numel())) < 0.15
        assert (share < 1e-6) == (rank == x.numel())
