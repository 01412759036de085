"""The loop around every iteration: when it ends, what it calls the end, and the sentences about it."""

from dataclasses import replace

import pytest
import torch
from cases import Case, random

from deconv_cli.errors import UntrustworthyResultError
from deconv_cli.solvers import richardson_lucy
from deconv_cli.solvers.normal_equations import MAX_ROUNDS, NormalEquations, refine_equations
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solution import QUADRATIC_OBJECTIVE, Solution, Status, StoppingRule

OPERATOR = Case("zero", "same", (1, 1, 1, 1), (7, 6)).operator()
PROBLEM = TikhonovProblem(OPERATOR, 0.0, 1.0)


def run(improve, *, tolerance=1e-6, max_iterations=100, n_images=1):
    truth = random((n_images, 1, 7, 6))
    y = OPERATOR.forward(truth)

    def counted(equations, x, gradient, log):
        log.add(log.scale)
        return improve(x, truth)

    equations, rule = NormalEquations.of_data(PROBLEM, y), StoppingRule(tolerance, max_iterations)
    return refine_equations(equations, torch.zeros_like(truth), rule, counted), truth


def test_the_last_round_counts():
    factor = (0.9e-6) ** (1 / MAX_ROUNDS)
    solution, _ = run(lambda x, truth: truth + factor * (x - truth))
    assert (solution.status, solution.n_iterations) == (Status.CONVERGED, MAX_ROUNDS)
    assert solution.certificate <= 1e-6


def test_no_gain_is_stagnation_and_keeps_the_best():
    solution, truth = run(lambda x, truth: truth + 0.4 * (x - truth) if not x.any() else x + 1)
    assert solution.status is Status.STAGNATED
    assert (solution.value - truth).norm() <= 0.41 * truth.norm()


def test_spent_iterations_are_called_so():
    solution, _ = run(lambda x, truth: truth + 0.1 * (x - truth), max_iterations=2)
    assert (solution.status, solution.n_iterations) == (Status.MAX_ITERATIONS, 2)


def test_one_stuck_image_does_not_hold_up_the_others():
    def improve(x, truth):
        better = truth + 1e-2 * (x - truth)
        better[0] = x[0]
        return better

    solution, truth = run(improve, n_images=2)
    assert solution.status is Status.STAGNATED
    assert (solution.value[1] - truth[1]).norm() <= 1e-5 * truth[1].norm()


def test_the_residual_is_kept_of_the_very_value_that_was_found():
    solution, truth = run(lambda x, truth: truth + 1e-2 * (x - truth))
    assert torch.equal(solution.residual, OPERATOR.forward(truth) - OPERATOR.forward(solution.value))
    assert replace(solution, value=2 * solution.value).residual is None


def test_no_residual_is_kept_where_some_images_are_of_an_earlier_round():
    def improve(x, truth):
        better = truth + 1e-2 * (x - truth)
        better[0] = truth[0] if not x.any() else x[0] + 1
        return better

    solution, truth = run(improve, tolerance=1e-7, n_images=2)
    assert torch.equal(solution.value[0], truth[0])
    assert solution.residual is None


def test_data_without_end_are_never_solved():
    y = torch.full((1, 7, 6), float("inf"), dtype=torch.float64)
    equations = NormalEquations.of_data(PROBLEM, y)
    solution = refine_equations(equations, None, StoppingRule(1e-6, 10), lambda x, gradient, course: x)
    assert not solution.status.is_success


ENDINGS = {
    (QUADRATIC_OBJECTIVE, None): 'use dtype="float64", a larger tolerance, or a λ nearer to 1',
    (
        "½‖Ax − y‖² + 0.1·TV(x)",
        0.1,
    ): 'check the kernel, or use dtype="float64" or a larger tolerance, or take another weight',
    (richardson_lucy.OBJECTIVE, None): 'check the kernel, or use dtype="float64" or a larger tolerance',
}


def test_advice_does_not_name_the_precision_that_is_in_use():
    solution = Solution(torch.zeros(1).double(), Status.STAGNATED, 3, 0.5)
    assert solution.ending.endswith("; use a larger tolerance, or a λ nearer to 1")


@pytest.mark.parametrize("case", ENDINGS)
def test_advice_names_what_the_objective_has(case):
    objective, weight = case
    solution = Solution(torch.zeros(1), Status.STAGNATED, 3, 0.5, objective=objective, weight=weight)
    told = f"the arithmetic's precision ran out before the tolerance was reached; {ENDINGS[case]}"
    assert solution.ending == told
    with pytest.raises(UntrustworthyResultError) as refusal:
        solution.raise_for_status()
    assert str(refusal.value) == f"{told} (certificate 0.5)."
