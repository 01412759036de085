"""Least squares with bounds on the outputs, held against all active sets and against the pseudo-inverse."""

import itertools
import math

import pytest
import torch
from cases import random

from deconv_cli.operators.bounds import Bounds
from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.solvers import bounded_least_squares
from deconv_cli.solvers.bounded_least_squares import solve_bounded
from deconv_cli.solvers.iteration_log import StoppingRule
from deconv_cli.solvers.solution import Status

RULE = StoppingRule(1e-12, 2000)


class Dense(LinearOperator):
    def __init__(self, matrix):
        self.matrix, self.dtype = matrix, matrix.dtype
        self.output_shape, self.input_shape = (matrix.shape[0],), (matrix.shape[1],)

    def forward(self, x):
        return x @ self.matrix.T

    def adjoint(self, y):
        return y @ self.matrix


@pytest.fixture(params=["singular values", "conjugate gradients"])
def way(request, monkeypatch):
    if request.param == "conjugate gradients":
        monkeypatch.setattr(bounded_least_squares, "MAX_DENSE_ENTRIES", 0)
    return request.param


def problem(seed, noise):
    """Outputs of 14 rows of which about half are cut off at zero, and may contradict one another."""
    A, x = random((14, 3), seed), random((3,), seed + 100)
    y = torch.relu(A @ x) + noise * random((14,), seed + 200)
    is_bound = y <= 0.2 if noise else y == 0
    return A, Bounds(torch.where(is_bound, -math.inf, y), y)


def best_of_all_active_sets(A, bounds):
    """Try every set of bounds that may be exceeded; the convex problem has one solution that is consistent."""
    known, found = bounds.known, []
    open_rows = (~known).nonzero().flatten().tolist()
    for n in range(len(open_rows) + 1):
        for exceeded in itertools.combinations(open_rows, n):
            rows = known.clone()
            rows[list(exceeded)] = True
            x = torch.linalg.lstsq(A[rows], bounds.upper[rows]).solution
            over = A @ x - bounds.upper
            if all((over[row] >= -1e-12) == (row in exceeded) for row in open_rows):
                found.append(x)
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_it_equals_the_best_of_all_active_sets(seed, noise, way):
    A, bounds = problem(seed, noise)
    solution = solve_bounded(Dense(A), bounds, RULE)
    assert solution.status is Status.CONVERGED
    assert solution.certificate <= 1e-12
    torch.testing.assert_close(solution.value, best_of_all_active_sets(A, bounds), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_known_outputs_give_the_solution_of_least_norm(shape, way):
    A, y = random(shape, 1), random(shape[:1], 2)
    solution = solve_bounded(Dense(A), Bounds.exactly(y), RULE)
    torch.testing.assert_close(solution.value, torch.linalg.pinv(A) @ y, rtol=1e-10, atol=1e-10)


def test_a_weight_is_that_of_tikhonov():
    A, y = random((5, 12), 1), random((5,), 2)
    solution = solve_bounded(Dense(A), Bounds.exactly(y), RULE, weight=0.3)
    exact = torch.linalg.solve(A.T @ A + 0.3 * torch.eye(12, dtype=A.dtype), A.T @ y)
    torch.testing.assert_close(solution.value, exact, rtol=1e-10, atol=1e-10)
    assert solution.status is Status.CONVERGED
    assert solution.weight == 0.3


def test_bounds_that_zero_meets_leave_zero():
    A = random((5, 4), 1)
    solution = solve_bounded(Dense(A), Bounds(torch.full((5,), -math.inf).double(), torch.ones(5).double()), RULE)
    assert solution.status is Status.CONVERGED
    assert not solution.value.any()


def test_iterations_that_run_out_are_said(monkeypatch):
    monkeypatch.setattr(bounded_least_squares, "MAX_DENSE_ENTRIES", 0)
    A, y = random((60, 40), 1), random((60,), 2)
    solution = solve_bounded(Dense(A), Bounds.exactly(y), StoppingRule(1e-12, 5))
    assert solution.status is Status.MAX_ITERATIONS
    assert solution.certificate > 1e-12
    assert solution.n_iterations <= 7
