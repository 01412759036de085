"""Levenberg–Marquardt steps with bounds on the outputs, and the smooth stand-ins that lead over kinks."""

import math

import pytest
import torch
from cases import random
from torch import nn

from deconv_cli.operators.bounds import Bounds
from deconv_cli.solvers.bounded_gauss_newton import solve_bounded_nonlinear
from deconv_cli.solvers.iteration_log import StoppingRule
from deconv_cli.solvers.solution import Status

RULE = StoppingRule(1e-10, 500)


def zeros(n):
    return torch.zeros(n, dtype=torch.float64)


def test_a_smooth_function_is_inverted():
    A = random((8, 4), 1)
    x = 0.3 * random((4,), 2)
    seen = []
    solution = solve_bounded_nonlinear(
        lambda x: torch.tanh(x @ A.T), Bounds.exactly(torch.tanh(A @ x)), zeros(4), RULE,
        progress=lambda n, residual: seen.append((n, residual)),
    )  # fmt: skip
    torch.testing.assert_close(solution.value, x, rtol=1e-9, atol=1e-9)
    assert solution.status is Status.CONVERGED
    assert seen
    assert seen[-1][1] <= 1e-8


def test_bounds_are_met_and_nothing_more():
    A = random((8, 4), 1)
    x = random((4,), 2)
    y = A @ x
    cut = y < 0
    bounds = Bounds(torch.where(cut, -math.inf, y**3), torch.where(cut, 0.0, y**3))
    solution = solve_bounded_nonlinear(lambda x: (x @ A.T) ** 3 + 0.1 * (x @ A.T), bounds, zeros(4), RULE)
    value = (A @ solution.value) ** 3 + 0.1 * (A @ solution.value)
    assert (value - bounds.nearest(value)).norm() < 1e-6 or solution.certificate <= 1e-10


@pytest.mark.parametrize(("smooths", "status"), [(True, Status.CONVERGED), (False, Status.LOCAL_MINIMUM)])
def test_stand_ins_lead_out_of_where_a_relu_gives_nothing(smooths, status):
    A, x = random((8, 4), 1), random((4,), 2)
    away = 2 * random((8,), 3).abs()

    def function(x):
        return torch.relu(x @ A.T - away) - torch.relu(-x @ A.T - away)

    y = function(3 * x[None])[0]
    solution = solve_bounded_nonlinear(function, Bounds.exactly(y), zeros(4), RULE, smooths=smooths)
    assert solution.status is status
    assert ((function(solution.value[None])[0] - y).norm() <= 1e-9 * y.norm()) == smooths


def test_a_minimum_that_does_not_meet_the_data_is_no_success():
    pool = nn.MaxPool1d(2)
    y = torch.tensor([[[-1.0]]], dtype=torch.float64)
    solution = solve_bounded_nonlinear(lambda x: pool(x).square(), Bounds.exactly(y[0]), zeros((1, 2)) + 0.5, RULE)
    assert solution.value.abs().max() < 0.5
    assert solution.residual_norms[-1] > 0.5
