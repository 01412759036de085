"""Inverses of layers, compared with the dense matrix of each."""

from __future__ import annotations

import pytest
import torch
from cases import random
from layer_cases import N_CASES, N_QUICK, LayerCase, case_of
from torch import Tensor

import deconv_cli
from deconv_cli.layer_options import LayerOptions
from deconv_cli.operators.layer_convolution import LayerConvolution
from deconv_cli.solvers.inverse import Inverse
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solution import StoppingRule
from deconv_cli.solvers.solver import build_inverse, choose_method, refusal_of

EXHAUSTIVE = [pytest.param(number, marks=pytest.mark.exhaustive) for number in range(N_QUICK, N_CASES)]
RULE = StoppingRule(1e-12, 2000)


@pytest.mark.parametrize("number", [*range(N_QUICK), *EXHAUSTIVE])
def test_the_pseudo_inverse_is_that_of_the_matrix(number: int) -> None:
    case = case_of(number)
    operator = case.operator
    if case.boundary == "unknown":  # only the frame is restored
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
@pytest.mark.parametrize("method", ["phases", "dense", "iterative"])
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


@pytest.mark.parametrize("lam", [0.0, 1e-2])
@pytest.mark.parametrize("options", [{}, {"groups": 1, "transposed": True, "output_padding": 1}])
def test_derivatives_in_data_and_taps(lam: float, options: dict) -> None:
    # Several channels for one: the data determine the image, so that the rank does not change with the taps.
    shape = (1, 3, 2, 2) if options else (5, 1, 2, 2)
    settings = {"stride": 2, "padding": 1, "groups": 1, "dimensions": 2, "input_size": (3, 2), "lam": lam} | options
    taps = random(shape, seed=3)
    y = random(deconv_cli.pseudo_inverse(taps, **settings).operator.output_shape, seed=4)
    taps.requires_grad_()
    y.requires_grad_()
    assert torch.autograd.gradcheck(lambda t, d: deconv_cli.pseudo_inverse(t, **settings)(d), (taps, y))


def test_the_report_says_what_no_output_depends_on() -> None:
    kernel = random((4, 3, 1, 1), seed=5)
    x = random((3, 8, 8), seed=6)
    y = deconv_cli.forward(x, kernel, stride=2)
    result = deconv_cli.invert(y, kernel, stride=2, lam=0.0)
    assert any(
        note.startswith("no output depends on 75 % of the pixels of the image, such as (0, 1)") for note in result.notes
    )
    assert float((result.image[:, ::2, ::2] - x[:, ::2, ::2]).abs().max()) < 1e-10
    assert float(result.image[:, 1::2].abs().max()) < 1e-12
    wide = deconv_cli.invert(y[:2], kernel[:2], stride=2, lam=0.0)
    assert wide.lost_directions.sentence.startswith("160 of 192 directions of the input leave no trace")


def test_the_advice_for_a_layer_names_a_given_size_and_no_bias_that_was_subtracted() -> None:
    kernel, bias, y = random((8, 1, 3, 3), seed=5), random((8,), seed=2), random((8, 8, 8), seed=6)
    options = {"stride": 2, "padding": 1, "lam": 0.0}
    plain, given = (deconv_cli.invert(y, kernel, **options, **more).doubts for more in ({}, {"bias": bias}))
    assert "number of groups, or a bias, which you must give;" in plain[0].sentence
    assert "number of groups; " in given[0].sentence
    (doubt,) = deconv_cli.invert(y, kernel, **options, input_size=(15, 15)).doubts
    assert "the input may have another size than 15×15, or the layer" in doubt.sentence


def test_the_share_that_a_singular_layer_determines_is_measured() -> None:
    kernel, x = random((8, 2, 2, 2), seed=5), random((2, 16, 16), seed=6)
    assert deconv_cli.invert(deconv_cli.forward(x, kernel, stride=2), kernel, stride=2, lam=0.0).determined is None
    kernel[7] = kernel[6] * (1 + 1e-16)
    result = deconv_cli.invert(deconv_cli.forward(x, kernel, stride=2), kernel, stride=2, lam=0.0)
    assert result.determined.share == pytest.approx(7 / 8, abs=0.06)
    assert any("do not determine some directions of the input" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    "options", [{"lam": "auto"}, {"lambda_rule": "gcv"}, {"lam": 1e-3, "noise": "auto"}, {"prior": "tv"}]
)
def test_what_is_for_plain_convolutions_alone_is_refused(options: dict) -> None:
    with pytest.raises(deconv_cli.UsageError, match="only for plain convolutions, but this layer has"):
        deconv_cli.invert(random((2, 4, 4)), random((2, 1, 3, 3)), stride=2, **options)


def test_a_truth_is_compared_though_no_error_of_a_layer_is_predicted() -> None:
    x, kernel = random((1, 8, 8)), random((6, 1, 3, 3))
    y = deconv_cli.forward(x, kernel, stride=2, padding=1)
    result = deconv_cli.invert(y, kernel, stride=2, padding=1, lam=0.0, truth=x)
    assert result.actual_error < 1e-9
    assert result.predicted_error is None
    assert any("predicted only for plain convolutions, but this layer has stride 2" in note for note in result.notes)


@pytest.mark.parametrize(("boundary", "penalty"), [("zero", "identity"), ("circular", "gradient")])
def test_groups_alone_are_undone_as_plain_convolutions(boundary: str, penalty: str) -> None:
    kernel, y = random((4, 1, 5, 5), seed=7), random((4, 24, 24), seed=8)
    settings = {"groups": 4, "boundary": boundary, "penalty": penalty, "lam": 1e-6, "dimensions": 2}
    found = deconv_cli.invert(y, kernel, **settings)
    plain = [deconv_cli.invert(y[n : n + 1], kernel[n], **settings | {"groups": 1}) for n in range(4)]
    assert found.solution.status.is_success
    assert found.solution.n_iterations <= 2 * sum(part.solution.n_iterations for part in plain)


def test_a_singular_group_is_undone_by_another_method_alone() -> None:
    laplacian = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64)
    kernel = torch.stack([laplacian, *random((2, 3, 3), seed=9)])[:, None]
    y = random((3, 12, 11), seed=10)
    inverse = deconv_cli.pseudo_inverse(kernel, input_size=(12, 11), groups=3, padding=1)
    assert inverse.choice.method == "phases"
    expected = torch.linalg.pinv(inverse.operator.as_matrix()) @ y.flatten()
    assert _error(inverse(y)[None], expected) < 1e-7


@pytest.mark.parametrize("seed", [0, 1])
def test_a_gradient_that_says_nothing_of_small_singular_values_does_not_end_the_iteration(seed: int) -> None:
    # Taps that are nearly the same for all outputs: a condition number of 2e4.
    taps = random((5, 1, 3, 3), seed=seed) + 5 * random((5, 1, 1, 1), seed=seed + 50)
    operator = LayerConvolution(taps, (10, 10), LayerOptions(stride=2), padding=1)
    problem, y = TikhonovProblem(operator, 0.0), random(operator.output_shape, seed=99)
    inverse, _ = build_inverse(problem, StoppingRule(1e-4, 2000), choose_method(problem, "iterative"))
    solution = inverse.solve(y)
    expected = torch.linalg.pinv(operator.as_matrix()) @ y.flatten()
    assert solution.distance_bound is not None
    assert _error(solution.value[None], expected) <= max(solution.distance_bound, 1e-12)
    assert _error(solution.value[None], expected) < 0.01 or not solution.status.is_success
