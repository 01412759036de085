"""Inverses of layers, held against the dense matrix of each."""

from __future__ import annotations

import pytest
import torch
from cases import random
from layer_cases import N_CASES, N_QUICK, LayerCase, case_of
from torch import Tensor

import deconv_cli
from deconv_cli.operators.layer_convolution import LayerConvolution
from deconv_cli.solvers.choice import build_inverse, choose_method, refusal_of
from deconv_cli.solvers.inverse import Inverse
from deconv_cli.solvers.iteration_log import StoppingRule
from deconv_cli.solvers.problem import TikhonovProblem

EXHAUSTIVE = [pytest.param(number, marks=pytest.mark.exhaustive) for number in range(N_QUICK, N_CASES)]
RULE = StoppingRule(1e-12, 2000)


@pytest.mark.parametrize("number", [*range(N_QUICK), *EXHAUSTIVE])
def test_the_pseudo_inverse_is_that_of_the_matrix(number: int) -> None:
    case = case_of(number)
    operator = case.operator
    if case.boundary == "unknown":  # what is wanted back is the frame alone
        problem = TikhonovProblem(operator, 0.0)
        inverse, _ = build_inverse(problem, RULE, choose_method(problem))
        found = _matrix_of(inverse, operator)
    else:
        pseudo = _pseudo_inverse(case)
        basis = torch.eye(_count(operator.output_shape), dtype=torch.float64)
        found = pseudo(basis.reshape(-1, *operator.output_shape)).reshape(len(basis), -1).T
    expected = torch.linalg.pinv(operator.as_matrix())
    assert float((found - expected).norm()) < 1e-9 * float(expected.norm())


def _pseudo_inverse(case: LayerCase, **more: object) -> deconv_cli.PseudoInverse:
    options = vars(case.options)
    return deconv_cli.pseudo_inverse(
        case.operator.kernel,
        input_size=case.size,
        dimensions=len(case.size),
        padding=case.padding,
        boundary=case.boundary,
        **options,
        **more,
    )


def _count(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _matrix_of(inverse: Inverse, operator: LayerConvolution) -> Tensor:
    basis = torch.eye(_count(operator.output_shape), dtype=torch.float64).reshape(-1, *operator.output_shape)
    return inverse.solve(basis).value.reshape(len(basis), -1).T


@pytest.mark.parametrize("lam", [0.0, 1e-3])
@pytest.mark.parametrize("method", ["phases", "dense", "layered"])
def test_every_method_solves_data_gradients_and_their_transposes(method: str, lam: float) -> None:
    n_tried = 0
    for number in range(0, N_QUICK, 6):
        operator = case_of(number).operator
        problem = TikhonovProblem(operator, lam)
        if refusal_of(method, problem) is not None:
            continue
        n_tried += 1
        inverse, _ = build_inverse(problem, RULE, choose_method(problem, method))
        matrix = operator.as_matrix()
        gram = torch.linalg.pinv(matrix.T @ matrix + problem.weight * torch.eye(matrix.shape[1]), rtol=1e-11)
        y, g = random((2, *operator.output_shape), seed=3), random((2, *operator.input_shape), seed=4)
        assert _error(inverse.solve(y).value, y.flatten(1) @ matrix @ gram) < 1e-7, case_of(number).name
        assert _error(inverse.solve_normal(g), g.flatten(1) @ gram) < 1e-7, case_of(number).name
        assert _error(inverse.solve_transposed(g), g.flatten(1) @ gram @ matrix.T) < 1e-7, case_of(number).name
    assert n_tried >= 4


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found.flatten(1) - expected).norm() / expected.norm())
