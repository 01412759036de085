"""Small problems as matrices: every operator, every rank."""

import pytest
import torch
from cases import random

from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators.convolution import Convolution
from deconv_cli.regularizers import find_penalty
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.dense import DenseSystem
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.solution import Status

SIZE = (6, 5)


def operators():
    blur = Convolution(random((2, 2, 3, 3)), SIZE, boundary="reflect")
    wide = Convolution(random((1, 2, 3, 3), seed=1), SIZE, padding="valid")
    return {"square": blur, "composed": wide @ blur, "adjoint": wide.H}


@pytest.mark.parametrize("name", operators())
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_any_operator_is_inverted(name, weight):
    operator = operators()[name]
    penalty = None
    matrix = stacked = operator.as_matrix()
    if weight > 0:
        penalty = find_penalty("gradient").operator(operator.input_shape, periodic=False)
        stacked = torch.cat([matrix, weight**0.5 * penalty.as_matrix()])
    system = DenseSystem(operator, penalty, weight, rcond=1e-12)
    y, g = random((3, *operator.output_shape), seed=2), random((3, *operator.input_shape), seed=3)
    normal = torch.linalg.pinv(stacked.T @ stacked, rtol=1e-11)
    expected = torch.linalg.pinv(stacked, rtol=1e-12)[:, : len(matrix)]
    for found, wanted, shape in (
        (system.estimate(y), y.flatten(1) @ expected.T, operator.input_shape),
        (system.solve_normal(g), g.flatten(1) @ normal, operator.input_shape),
        (system.solve_transposed(g), g.flatten(1) @ expected, operator.output_shape),
    ):
        assert found.shape == (3, *shape)
        assert (found.flatten(1) - wanted).norm() <= 1e-9 * wanted.norm()


def rank_deficient():
    """Taps of two channels, of which one is twice the other."""
    taps = random((2, 2, 3, 3))
    taps[:, 1] = 2 * taps[:, 0]
    return taps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_the_rank_leaves_open_is_left_out(dtype):
    kernel = Kernel(rank_deficient().to(dtype), False)
    inverse = PseudoInverse(kernel, SIZE, ResolvedSettings(boundary="replicate", method="dense"))
    y = random(inverse.operator.output_shape).to(dtype)
    solution = inverse.solve(y)
    matrix = inverse.operator.in_float64().as_matrix()
    expected = torch.linalg.pinv(matrix, rtol=inverse.rcond) @ y.double().flatten()
    error = (solution.value.flatten() - expected).norm() / expected.norm()
    assert error <= (1e-10 if dtype == torch.float64 else 1e-6)
    assert error <= solution.distance_bound
    assert solution.status is Status.CLOSED_FORM
    assert solution.value.dtype == dtype


def test_it_is_taken_only_where_it_costs_least():
    methods = [
        PseudoInverse(
            Kernel(rank_deficient(), False), (n, n), ResolvedSettings(boundary="zero", lam=1e-2)
        ).choice.method
        for n in (4, 8, 30)
    ]
    assert methods[0] == "dense"
    assert methods[-1] != "dense"
