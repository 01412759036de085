"""Lines and volumes: every solver against dense linear algebra."""

import pytest
import torch
from cases import dense_tikhonov, mild_kernel, random

from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.parts import BOUNDARIES, PENALTIES, SOLVERS
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.pseudo_inverse import PseudoInverse

# (C_out, C_in, *k) and the size of the image.
PROBLEMS = {
    "line": ((1, 1, 3), (11,)),
    "line of channels": ((3, 2, 4), (9,)),
    "volume": ((1, 1, 2, 3, 2), (4, 5, 4)),
    "volume of channels": ((2, 2, 3, 1, 2), (4, 3, 4)),
}


def inverse_of(problem, boundary, method="auto", **settings):
    shape, size = PROBLEMS[problem]
    wanted = ResolvedSettings(boundary=boundary, method=method, **settings)
    return PseudoInverse(Kernel(mild_kernel(shape), False), size, wanted)


def dense_solution(inverse, y):
    problem = inverse.problem
    penalty = problem.penalty_operator if problem.lam > 0 else None
    return dense_tikhonov(problem.operator, y, problem.weight, penalty)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("boundary", list(BOUNDARIES))
@pytest.mark.parametrize(("lam", "penalty"), [(0.0, "identity"), *((1e-2, name) for name in PENALTIES)])
def test_inverses_equal_the_dense_one(problem, boundary, lam, penalty):
    methods = []
    for method in SOLVERS:
        try:
            inverse = inverse_of(problem, boundary, method, lam=lam, penalty=penalty)
        except UsageError:
            continue
        methods.append(method)
        y = random(inverse.operator.output_shape, seed=3)
        solution = inverse.solve(y).raise_for_status()
        expected = dense_solution(inverse, y)
        assert (solution.value - expected).norm() <= 1e-8 * expected.norm(), method
        gradient = random(inverse.operator.input_shape, seed=4)
        gram = inverse.operator.gram.as_matrix()
        if lam > 0:
            gram = gram + inverse.problem.weight * inverse.problem.penalty_operator.gram.as_matrix()
        normal = inverse._inverse.solve_normal(gradient).flatten()
        assert (normal - torch.linalg.pinv(gram, rtol=1e-11) @ gradient.flatten()).norm() <= 1e-7 * normal.norm()
    assert "iterative" in methods
    assert "strip" not in methods
    assert ("fft" in methods) == (boundary == "circular")


@pytest.mark.parametrize("boundary", ["circular", "zero", "unknown", "reflect"])
@pytest.mark.parametrize("penalty", ["gradient", "laplacian"])
def test_differences_are_taken_per_distance(boundary, penalty):
    """The same problem with its axes in another order has the same answer in that order."""
    given = inverse_of("volume", boundary, lam=1e-2, penalty=penalty, spacing=(3.0, 1.0, 2.0))
    y = random(given.operator.output_shape, seed=3)
    solution = given.solve(y).raise_for_status()
    expected = dense_solution(given, y)
    assert (solution.value - expected).norm() <= 1e-8 * expected.norm()
    alike = inverse_of("volume", boundary, lam=1e-2, penalty=penalty).solve(y)
    assert (solution.value - alike.value).norm() > 1e-3 * alike.value.norm()
    shape, size = PROBLEMS["volume"]
    settings = ResolvedSettings(boundary=boundary, lam=1e-2, penalty=penalty, spacing=(1.0, 2.0, 3.0))
    turned = PseudoInverse(Kernel(mild_kernel(shape).permute(0, 1, 3, 4, 2), False), (*size[1:], size[0]), settings)
    if boundary != "unknown":  # else even kernels reach further on one side
        found = turned.solve(y.permute(0, 2, 3, 1)).value.permute(0, 3, 1, 2)
        assert (found - solution.value).norm() <= 1e-8 * expected.norm()
