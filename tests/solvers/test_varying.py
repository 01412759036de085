"""Kernels that vary over the frame, undone: the dense solution is the judge."""

import pytest
import torch
from cases import random

from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.parts import BOUNDARIES
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.pseudo_inverse import PseudoInverse


def blurs(shape, *, dtype=torch.float64):
    """Kernels without negative taps, each of sum 1."""
    taps = random(shape).abs()
    return (taps / taps.sum(dim=(2, 3), keepdim=True)).to(dtype)


def inverse_of(taps, size, **settings):
    field = KernelField(taps, [0.3, 0.8][: len(taps)], [0.1, 0.6, 0.9][: taps.shape[1]])
    return PseudoInverse(Kernel.of_any(field), size, ResolvedSettings(**settings))


def dense_solution(inverse, y):
    matrix, penalty = inverse.operator.as_matrix(), inverse.problem.penalty_operator.gram.as_matrix()
    return torch.linalg.solve(matrix.T @ matrix + inverse.problem.weight * penalty, matrix.T @ y.flatten())


@pytest.mark.parametrize("boundary", [*BOUNDARIES])
@pytest.mark.parametrize(("padding", "penalty"), [("same", "gradient"), ("valid", "identity"), ("full", "laplacian")])
def test_it_gives_the_dense_solution(boundary, padding, penalty):
    inverse = inverse_of(blurs((2, 3, 4, 3)), (9, 8), boundary=boundary, padding=padding, lam=1e-2, penalty=penalty)
    assert inverse.choice.method == "varying"
    y = random((1, *inverse.geometry.output_size))
    solution = inverse.solve(y).raise_for_status()
    expected = dense_solution(inverse, y)
    torch.testing.assert_close(solution.value.flatten(), expected, rtol=1e-6, atol=1e-7 * float(expected.norm()))
    assert solution.certificate <= 1e-10
    assert inverse.problem.certificate(solution.value, inverse.arrange(y)) == pytest.approx(
        solution.certificate, rel=0.1
    )


def test_without_lambda_it_gives_the_solution_of_least_norm():
    taps = blurs((2, 3, 3, 3)) + torch.eye(3)  # well conditioned
    inverse = inverse_of(taps, (6, 7), boundary="zero", padding="same", lam=0.0)
    y = random((1, 6, 7))
    expected = torch.linalg.pinv(inverse.operator.as_matrix()) @ y.flatten()
    torch.testing.assert_close(inverse.solve(y).raise_for_status().value.flatten(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lam", [1e-5, 10.0])
def test_single_precision_is_solved_with_residuals_in_double_precision_where_it_must_be(lam):
    inverse = inverse_of(
        blurs((2, 2, 3, 3), dtype=torch.float32), (12, 12), boundary="symmetric", lam=lam, penalty="gradient"
    )
    y = random((1, 12, 12), dtype=torch.float32) + 3
    solution = inverse.solve(y).raise_for_status()
    wide = inverse_of(inverse.kernel.field.taps.double(), (12, 12), boundary="symmetric", lam=lam, penalty="gradient")
    expected = dense_solution(wide, y.double())
    assert (solution.value.double().flatten() - expected).norm() <= 1e-2 * expected.norm()


def test_only_its_own_method_takes_it_and_no_other_kernel():
    with pytest.raises(UsageError, match="method strip inverts a single kernel, but this one varies over the frame"):
        inverse_of(blurs((2, 2, 3, 3)), (9, 9), lam=1e-2, method="strip")
    with pytest.raises(UsageError, match="method varying is for kernels that vary over the frame"):
        PseudoInverse(Kernel.of_any(blurs((1, 1, 3, 3))), (9, 9), ResolvedSettings(lam=1e-2, method="varying"))
