"""Small problems as matrices: every operator, every rank."""

import pytest
import torch
from cases import random

from deconv_cli.kernels.kernel import Kernel
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.fourier import default_rcond
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.solution import Status

SIZE = (6, 5)


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
    expected = torch.linalg.pinv(matrix, rtol=default_rcond(dtype)) @ y.double().flatten()
    error = (solution.value.flatten() - expected).norm() / expected.norm()
    assert error <= (1e-10 if dtype == torch.float64 else 1e-6)
    assert error <= solution.distance_bound
    assert solution.status is Status.CLOSED_FORM
    assert solution.value.dtype == dtype
