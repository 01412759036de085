"""The system on a border's unknowns, its bands, the square elimination, and the two Krylov methods."""

import pytest
import torch
from cases import random

from deconv_cli import pseudo_inverse
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators import torus_filter
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.geometry import Geometry
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers import strip
from deconv_cli.solvers.cgls import solve_definite, solve_indefinite
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.solution import GradientLog, Status, StoppingRule
from deconv_cli.solvers.square_border import SquareBorderSystem


@pytest.mark.parametrize("boundary", ["zero", "reflect", "replicate"])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((2, 2, 3, 3), (7, 8)), ((1, 1, 3, 4), (9, 8)), ((2, 2, 1, 3), (6, 7)), ((2, 2, 3, 1), (6, 7))],
)
def test_square_systems_and_their_transposes_equal_the_dense_inverse(boundary, shape, size):
    operator = Convolution.of_geometry(random(shape), Geometry.of_image(size, shape[2:], "same"), boundary)
    A = operator.as_matrix()
    system = SquareBorderSystem(operator)
    y = random((3, *operator.output_shape), seed=1)
    for estimate, matrix in ((system.estimate(y), A), (system.estimate_transposed(y), A.T)):
        expected = torch.linalg.solve(matrix, y.flatten(1).T).T
        assert (estimate.flatten(1) - expected).norm() <= 1e-15 * float(torch.linalg.cond(A)) ** 2 * expected.norm()


def test_ill_conditioned_rows_are_corrected_before_the_certificate_is_computed():
    generator = torch.Generator().manual_seed(4)
    kernel = torch.randn(2, 2, 3, 3, dtype=torch.float64, generator=generator)
    inverse = pseudo_inverse(kernel, input_size=(32, 32), padding="same", lam=0.0, method="direct")
    assert isinstance(inverse._inverse._system, SquareBorderSystem)
    solution = inverse.solve(random((2, 32, 32)))
    assert (solution.n_iterations, solution.certificate <= 1e-12) == (0, True)


def test_krylov_methods_solve_a_batch_each_for_itself():
    n = 40
    basis = torch.linalg.qr(random((n, n)))[0]
    values = torch.linspace(1, 3, n, dtype=torch.float64)
    definite = basis @ torch.diag(values) @ basis.T
    indefinite = basis @ torch.diag(values * torch.where(torch.arange(n) % 4 == 0, -1, 1)) @ basis.T
    right = random((3, n), seed=1) * torch.tensor([[1.0], [0.0], [1e6]], dtype=torch.float64)
    scale = right.norm(dim=-1)
    for matrix, solve in (
        (definite, solve_definite),
        (indefinite, lambda *args: solve_indefinite(*args, n_vectors=50)),
        (indefinite, lambda *args: solve_indefinite(*args, n_vectors=10)),
    ):
        heights = []

        def watch(remaining, heights=heights):
            heights.append(remaining)
            return len(heights) < 400 and bool((remaining > 1e-12 * scale).any())

        scaling = 1 / definite.diagonal()
        x = solve(lambda v, m=matrix: v @ m.T, lambda v, s=scaling: v * s, right.clone(), watch)
        assert len(heights) < 400
        assert (x @ matrix.T - right).norm(dim=-1).le(1e-11 * scale).all()
        # The remainder that the method reported is the real one.
        assert (heights[-1] <= 1e-12 * scale).all()


@pytest.mark.parametrize(
    ("boundary", "penalty"), [("unknown", "gradient"), ("reflect", "identity"), ("zero", "gradient")]
)
@pytest.mark.parametrize("n_channels", [2, 5])
def test_a_border_is_the_same_if_spectra_come_some_rows_at_a_time(n_channels, boundary, penalty, monkeypatch):
    monkeypatch.setattr(torus_filter, "MAX_NUMBERS_IN_CACHE", 3 * 9 * n_channels)
    operator = Convolution(random((n_channels, n_channels, 3, 4)), (13, 12), boundary=boundary)
    problem = TikhonovProblem(operator, 0.05, penalty=penalty)
    assert len(strip.StripSystem(problem)._system._parts) > 2
    y = random((2, *operator.output_shape), seed=1)
    settings = ResolvedSettings(boundary=boundary, lam=0.05, penalty=penalty, method="strip", tolerance=1e-11)
    solution = PseudoInverse(Kernel(operator.kernel, False), (13, 12), settings).solve(y)
    A, L = operator.as_matrix(), problem.penalty_operator.as_matrix()
    expected = torch.linalg.solve(A.T @ A + problem.weight * L.T @ L, A.T @ y.flatten(1).T).T
    assert (solution.value.flatten(1) - expected).norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize("boundary", ["unknown", "reflect", "zero"])
def test_a_small_image_stands_for_the_crossing_of_a_large_one(boundary, monkeypatch):
    """Without it the iteration has the crossing to settle at the size of the image."""
    monkeypatch.setattr(strip, "CROSSING", 16)
    settings = ResolvedSettings(boundary=boundary, lam=0.05, method="strip", tolerance=1e-11)
    kernel, y = Kernel(random((2, 2, 2, 3)), False), random((2, 162, 175), seed=1)
    found = PseudoInverse(kernel, (162, 175), settings).solve(y)
    monkeypatch.setattr(strip, "CROSSING", 1000)
    expected = PseudoInverse(kernel, (162, 175), settings).solve(y)
    assert (found.value - expected.value).norm() <= 1e-9 * expected.value.norm()
    assert found.n_iterations <= 0.6 * expected.n_iterations


def test_rounding_where_bands_cross_does_not_hold_up_conjugate_gradients(monkeypatch):
    monkeypatch.setattr(strip, "CROSSING", 16)
    taps, y = torch.full((1, 1, 3, 3), 1 / 9), random((1, 162, 172), seed=1).float()
    settings = {"boundary": "unknown", "lam": 1e-3, "method": "strip", "tolerance": 1e-6}
    assert pseudo_inverse(taps, input_size=(162, 172), **settings).solve(y).n_iterations <= 5


@pytest.mark.parametrize("size", [(1, 3), (3, 1), (3, 3)])
def test_a_rough_solution_takes_bands_of_no_width(size, monkeypatch):
    monkeypatch.setattr(strip, "CROSSING", 16)
    problem = TikhonovProblem(Convolution(random((1, 1, *size)), (162, 175), boundary="reflect"), 0.05)
    exact, gradient = strip.STRIP.build(problem, StoppingRule(1e-9, 500)), random((2, 1, 162, 175), seed=1)
    expected = exact.solve_normal(gradient)
    log = GradientLog(StoppingRule(0.1, 5), gradient.new_ones(2))
    rough = strip.StripSystem(problem).approximate(gradient, log)
    assert (rough - expected).norm() <= 0.02 * expected.norm()


@pytest.mark.parametrize(("lam", "most"), [(1e-9, 145), (1e-7, 65), (1e-5, 45)])
def test_a_tiny_lambda_takes_few_iterations_of_gmres_where_bands_cross(lam, most):
    """Rounding brings in what both bands hold there, which the system does not determine."""
    line = (-((torch.arange(17, dtype=torch.float64) - 8) ** 2) / 8).exp()
    taps = torch.outer(line, line) / line.sum() ** 2
    x = random((1, 64, 72), seed=1).cumsum(1).cumsum(2)
    y = Convolution(taps[None, None], (64, 72), padding="same", boundary="symmetric").forward(x)
    settings = {"boundary": "reflect", "lam": lam, "penalty": "gradient", "method": "strip", "max_iterations": 2 * most}
    solution = pseudo_inverse(taps, input_size=(64, 72), **settings).solve(y)
    assert (solution.status, solution.n_iterations <= most) == (Status.CONVERGED, True)
