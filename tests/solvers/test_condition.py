"""The condition number that decides the method, compared with dense matrices; and the method that it chooses."""

import math

import pytest
import torch
from cases import ALL_CASES, random

from deconv_cli.operators.convolution import Convolution
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solver import choose_method

BOUNDED = [case for case in ALL_CASES if case.size == (7, 6) and case.shape[2:] != (1, 1)]


def layer(n_channels):
    """Channels that are mixed a little, as in a trained layer."""
    taps = random((n_channels, n_channels, 5, 5), seed=3) / (20 * n_channels**0.5)
    taps[:, :, 2, 2] += torch.eye(n_channels, dtype=torch.float64)
    return taps


def blur(n_taps):
    line = torch.exp(-((torch.arange(n_taps) - n_taps // 2).double() ** 2) / (n_taps / 2))
    return torch.outer(line, line)[None, None] / line.sum() ** 2


@pytest.mark.parametrize("case", BOUNDED, ids=lambda case: case.name)
def test_the_bound_is_never_below_the_dense_condition(case):
    operator = case.operator()
    values = torch.linalg.svdvals(operator.as_matrix()).square()
    values = values[values > 1e-20 * values[0]]
    for lam in (0.0, 1e-2):
        problem = TikhonovProblem(operator, lam)
        weight = problem.weight
        dense = float((values[0] + weight) / (values[-1] + weight))
        # Copies of pixels add to their gain, which the symbol does not show.
        n_copies = 4 if operator.boundary.copies_pixels and not operator.boundary.is_periodic else 1
        assert n_copies * problem.condition >= 0.99 * dense
        assert lam == 0 or problem.condition <= 4 * (1 + 1 / lam)


@pytest.mark.parametrize(("boundary", "padding"), [("zero", "same"), ("circular", "full"), ("reflect", "valid")])
def test_a_layer_that_is_well_conditioned_is_known_to_be(boundary, padding):
    """Under zeros by its Hermitian part, which is definite; else its border might lose what the torus does not."""
    operator = Convolution(layer(2), (9, 8), padding=padding, boundary=boundary)
    values = torch.linalg.svdvals(operator.as_matrix()).square()
    assert values[0] / values[-1] <= TikhonovProblem(operator, 0.0).condition * 1.01 < 200
    assert TikhonovProblem(Convolution(layer(2), (9, 8), boundary="reflect"), 0.0).condition == math.inf


@pytest.mark.parametrize(
    ("taps", "size", "boundary", "padding", "lam", "penalty", "expected"),
    [
        (blur(9), (256, 256), "circular", "valid", 1e-3, "gradient", "iterative"),
        (blur(9), (256, 256), "circular", "valid", 1e-5, "gradient", "iterative"),
        (blur(9), (96, 96), "circular", "full", 1e-3, "gradient", "iterative"),
        (blur(9), (96, 96), "circular", "valid", 1e-3, "identity", "strip"),
        (blur(9), (128, 128), "zero", "same", 1e-6, "identity", "strip"),
        (blur(9), (128, 128), "reflect", "same", 1e-3, "gradient", "strip"),
        (layer(3), (96, 96), "circular", "valid", 0.0, "identity", "strip"),
        (layer(3), (96, 96), "zero", "full", 0.0, "identity", "strip"),
        (layer(3), (96, 96), "reflect", "same", 1e-3, "identity", "strip"),
        (layer(3), (96, 96), "zero", "same", 0.0, "identity", "direct"),
        (layer(3), (96, 96), "reflect", "same", 0.0, "identity", "direct"),
        (layer(8), (400, 400), "zero", "same", 0.0, "identity", "iterative"),
        (random((8, 8, 3, 3)), (400, 400), "zero", "same", 0.0, "identity", "direct"),
    ],
)
def test_the_choice_was_within_half_of_the_fastest_where_that_was_measured(
    taps, size, boundary, padding, lam, penalty, expected
):
    operator = Convolution(taps, size, padding=padding, boundary=boundary)
    assert choose_method(TikhonovProblem(operator, lam, penalty=penalty), max_memory=2**34).method == expected
