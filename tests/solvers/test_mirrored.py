"""The closed form for even kernels under boundary `symmetric`, against dense linear algebra."""

import pytest
import torch
from cases import dense_tikhonov, random

import deconv_cli
from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.solution import Status

# (C_out, C_in, *k) and the size of the image: odd and even sizes, and a kernel larger than the image.
PROBLEMS = [
    ((1, 1, 5), (9,)),
    ((2, 3, 3), (8,)),
    ((1, 1, 3, 5), (6, 7)),
    ((5, 4, 3, 3), (5, 6)),
    ((1, 1, 9, 9), (4, 5)),
    ((1, 1, 3, 3, 1), (3, 4, 5)),
    ((2, 1, 3, 1, 3), (4, 1, 4)),
]
LAPLACIAN = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64)[None, None]


def even(taps):
    for axis in range(2, taps.ndim):
        taps = taps + taps.flip(axis)
    return taps


def inverse_of(taps, size, **settings):
    return PseudoInverse(Kernel(taps, False), size, ResolvedSettings(boundary="symmetric", **settings))


@pytest.mark.parametrize(("shape", "size"), PROBLEMS)
@pytest.mark.parametrize(("lam", "penalty"), [(0.0, "identity"), (1e-2, "identity"), (1e-7, "gradient")])
def test_it_equals_the_dense_inverse(shape, size, lam, penalty):
    inverse = inverse_of(even(random(shape)), size, lam=lam, penalty=penalty, method="dct")
    problem = inverse.problem
    L = problem.penalty_operator if lam > 0 else None
    y = random((2, *problem.operator.output_shape), seed=3)
    solution = inverse.solve(y)
    assert solution.status is Status.CLOSED_FORM
    assert solution.certificate <= 1e-11
    A = problem.operator.as_matrix()
    gram = A.T @ A + (problem.weight * L.gram.as_matrix() if L is not None else 0)
    g = random(problem.operator.input_shape, seed=4)
    expected = torch.linalg.pinv(gram, rtol=1e-13) @ g.flatten()
    for found, wanted in (
        (inverse._inverse.solve_normal(g), expected),
        (inverse._inverse.solve_transposed(g), A @ expected),
    ):
        assert (found.flatten() - wanted).norm() <= 1e-8 * wanted.norm()
    for value, data in zip(solution.value, y, strict=True):
        expected = dense_tikhonov(problem.operator, data, problem.weight, L)
        assert (value - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize(("lam", "penalty"), [(0.0, "identity"), (1e-2, "gradient")])
def test_constants_that_nothing_determines_are_zero(lam, penalty):
    inverse = inverse_of(LAPLACIAN, (8, 7), lam=lam, penalty=penalty)
    assert inverse.choice.method == "dct"
    y = random((1, 8, 7))
    penalty_operator = inverse.problem.penalty_operator if lam > 0 else None
    expected = dense_tikhonov(inverse.operator, y, inverse.problem.weight, penalty_operator)
    assert (inverse.solve(y).value - expected).norm() <= 1e-12 * expected.norm()


def test_long_lines_are_transformed_in_parts(monkeypatch):
    taps, y = even(random((1, 1, 3, 3, 3))), random((1, 5, 6, 7))
    whole = inverse_of(taps, (5, 6, 7), lam=1e-3, method="dct").solve(y).value
    monkeypatch.setattr("deconv_cli.operators.torus_filter.MAX_NUMBERS_IN_CACHE", 16)
    assert torch.allclose(inverse_of(taps, (5, 6, 7), lam=1e-3, method="dct").solve(y).value, whole, atol=1e-14)


def test_auto_takes_it_for_every_kernel_that_is_a_formula():
    for kernel in ("disk:2.3", "gaussian:1.5", "box:4", "moffat:3@2.5", "airy:2"):
        inverse = deconv_cli.pseudo_inverse(
            deconv_cli.make_kernel(kernel), input_size=(90, 80), boundary="symmetric", lam=1e-3
        )
        assert inverse.choice.method == "dct", kernel


@pytest.mark.parametrize(
    ("shape", "settings", "reason"),
    [
        ((1, 1, 3, 3), {"boundary": "reflect"}, "is for whole images with boundary symmetric"),
        ((1, 1, 3, 3), {"padding": "valid"}, "centered on the pixel"),
        ((1, 1, 4, 4), {}, "centered on the pixel"),
        ((1, 1, 3, 3), {"lam": 1e-2, "penalty": "laplacian"}, "penalty laplacian takes others"),
    ],
)
def test_other_problems_are_refused(shape, settings, reason):
    with pytest.raises(UsageError, match=f"method dct .*{reason}"):
        PseudoInverse(
            Kernel(even(random(shape)), False),
            (9, 9),
            ResolvedSettings(**{"boundary": "symmetric", **settings}, method="dct"),
        )


def test_a_kernel_that_is_uneven_along_one_axis_is_refused():
    taps = even(random((1, 1, 3, 3)))
    taps[0, 0, 0] *= 1.001
    with pytest.raises(UsageError, match="method dct is for kernels that are even along every axis"):
        inverse_of(taps, (9, 9), method="dct")
