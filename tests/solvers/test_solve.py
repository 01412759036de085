"""`solve` for operators of any kind, against dense linear algebra."""

import itertools
import math

import pytest
import torch
from cases import dense_tikhonov, random

from deconv_cli.errors import MalformedInputError, ShapeError, UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.layer_options import LayerOptions
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.differences import Gradient
from deconv_cli.operators.layer_convolution import LayerConvolution
from deconv_cli.operators.linear_operator import Identity, LinearOperator
from deconv_cli.parts import BOUNDARIES, PENALTIES
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.solution import Status
from deconv_cli.solvers.solve import largest_singular_value_of, solve

SIZE = (7, 6)


class Matrix(LinearOperator):
    def __init__(self, matrix):
        self.matrix, self.dtype = matrix, matrix.dtype
        self.output_shape, self.input_shape = ((n,) for n in matrix.shape)

    def forward(self, x):
        return x @ self.matrix.T

    def adjoint(self, y):
        return y @ self.matrix


class Weights(LinearOperator):
    def __init__(self, weights):
        self.weights = weights
        self.input_shape = self.output_shape = tuple(weights.shape)

    def forward(self, x):
        return self.weights * x

    adjoint = forward


def close(found, expected, tolerance=1e-7):
    return bool((found - expected).norm() <= tolerance * expected.norm())


@pytest.mark.parametrize("shape", [(9, 9), (12, 7), (6, 10)])
def test_matrices_are_inverted(shape):
    matrix = random(shape)
    A, y = Matrix(matrix), random((3, shape[0]), seed=1)
    solution = solve(A, y).raise_for_status()
    assert close(solution.value, y @ torch.linalg.pinv(matrix).T)
    assert solution.distance_bound is None


def test_ranks_that_are_not_full_give_the_least_norm():
    matrix = random((9, 4)) @ random((4, 8), seed=1)
    y = random((9,), seed=2)
    assert close(solve(Matrix(matrix), y).value, torch.linalg.lstsq(matrix, y, driver="gelsd").solution)


@pytest.mark.parametrize("lam", [1e-6, 1e-3, 1.0])
def test_a_penalty_is_scaled_by_the_largest_singular_value(lam):
    matrix = random((12, 9))
    A, y, sigma = Matrix(matrix), random((12,), seed=1), float(torch.linalg.svdvals(matrix)[0])
    assert largest_singular_value_of(A, y) == pytest.approx(sigma, rel=0.01)
    solution = solve(A, y, lam=lam).raise_for_status()
    weight = lam * largest_singular_value_of(A, y) ** 2
    expected = dense_tikhonov(A, y, weight, Identity((9,)))
    assert close(solution.value, expected)
    assert (solution.value - expected).norm() <= (solution.distance_bound + 1e-12) * expected.norm()


@pytest.mark.parametrize("boundary", list(BOUNDARIES))
@pytest.mark.parametrize("penalty", list(PENALTIES))
@pytest.mark.parametrize("lam", [0.0, 1e-3])
def test_convolutions_are_solved_as_a_pseudo_inverse_does(boundary, penalty, lam):
    kernel = random((2, 2, 3, 3))
    A = Convolution(kernel, SIZE, boundary=boundary)
    y = random((2, *A.output_shape), seed=1)
    settings = ResolvedSettings(boundary=boundary, lam=lam, penalty=penalty)
    expected = PseudoInverse(Kernel(kernel, False), SIZE, settings).solve(y)
    found = solve(A, y, penalty=penalty, lam=lam)
    assert torch.equal(found.value, expected.value)
    assert (found.status, found.n_iterations) == (expected.status, expected.n_iterations)


@pytest.mark.parametrize("boundary", ["zero", "reflect", "circular"])
def test_operators_compose(boundary):
    A = Convolution(random((2, 1, 3, 3)), SIZE, boundary=boundary)
    B = Convolution(random((1, 2, 3, 3), seed=1), SIZE, boundary=boundary)
    y = random((1, *SIZE), seed=2)
    for operator in (B @ A, 2 * (B @ A), B @ A + Identity((1, *SIZE)), (B @ A).H):
        weight = 1e-2 * largest_singular_value_of(operator, y) ** 2
        for penalty, L in (("identity", Identity((1, *SIZE))), (Gradient((1, *SIZE)), Gradient((1, *SIZE)))):
            solution = solve(operator, y, penalty=penalty, lam=1e-2).raise_for_status()
            assert close(solution.value, dense_tikhonov(operator, y, weight, L))


def test_a_penalty_of_ones_own():
    A = Convolution(random((1, 1, 3, 3)), SIZE)
    L = Weights(1 + random((1, *SIZE), seed=3).abs())
    y = random(A.output_shape, seed=1)
    solution = solve(A, y, penalty=L, lam=1e-2).raise_for_status()
    expected = dense_tikhonov(A, y, 1e-2 * largest_singular_value_of(A, y) ** 2, L)
    assert close(solution.value, expected)
    assert (solution.value - expected).norm() <= 10 * solution.distance_bound * expected.norm()


@pytest.mark.parametrize("penalty", ["gradient", "laplacian"])
@pytest.mark.parametrize("lam", [1e-12, 1e-10, 1e-8])
def test_no_bound_is_stated_that_the_error_exceeds(lam, penalty):
    A = LayerConvolution(random((1, 1, 2, 2)), (8, 8), LayerOptions(stride=(3, 3), dilation=(1, 1)), padding=0)
    y = A.forward(random(A.input_shape, seed=1))
    solution = solve(A, y, penalty=penalty, lam=lam)
    L = PENALTIES[penalty].operator(A.input_shape, periodic=False)
    expected = dense_tikhonov(A, y, lam * largest_singular_value_of(A, y) ** 2, L)
    error = (solution.value - expected).norm()
    assert not solution.status.is_success or error <= (solution.distance_bound + 1e-6) * solution.value.norm()


def test_iterations_end():
    A, y, seen = Matrix(random((30, 30))), random((30,), seed=1), []
    solution = solve(A, y, max_iterations=4, progress=lambda n, certificate: seen.append((n, certificate)))
    assert solution.status is Status.MAX_ITERATIONS
    assert [n for n, _ in seen] == [1, 2, 3, 4]
    assert tuple(certificate for _, certificate in seen) == solution.residual_norms


def test_what_does_not_fit_is_refused():
    A, y = Convolution(random((1, 1, 3, 3)), SIZE), random((1, *SIZE))
    for wrong, error, arguments in (
        (y[..., 1:], ShapeError, {}),
        (y, ShapeError, {"penalty": Identity((1, 6, 7)), "lam": 1.0}),
        (y, UsageError, {"penalty": None, "lam": 1.0}),
        (y, UsageError, {"penalty": "curvy", "lam": 1.0}),
        (y, UsageError, {"tolerance": 0.0}),
        (y, UsageError, {"tolerance": "small"}),
        (y, UsageError, {"max_iterations": 0}),
        (y, UsageError, {"max_iterations": 2.5}),
        (y, UsageError, {"penalty": 3, "lam": 1.0}),
        (y.int(), UsageError, {}),
        (y + 0j, UsageError, {}),
        (y[None][:0], ShapeError, {}),
        (y.float(), UsageError, {}),
        (y / 0, MalformedInputError, {}),
    ):
        with pytest.raises(error):
            solve(A, wrong, **arguments)
    for operator, lam in itertools.product((A, Matrix(random((9, 9)))), (-1.0, math.nan, math.inf, "much", None)):
        with pytest.raises(UsageError, match="lam must be"):
            solve(operator, random(operator.output_shape), lam=lam)


def test_a_lambda_beyond_the_arithmetic_is_one_sentence():
    for dtype, lam in ((torch.float32, 1e30), (torch.float64, 1e300)):
        A = Convolution(random((1, 1, 3, 3), dtype=dtype), SIZE)
        with pytest.raises(UsageError, match="λ must be at most") as caught:
            solve(A, random((1, *SIZE), dtype=dtype), lam=lam)
        assert "\n" not in str(caught.value)
        settings = ResolvedSettings(lam=lam)
        with pytest.raises(UsageError, match="λ must be at most"):
            PseudoInverse(Kernel(A.kernel, False), SIZE, settings)
