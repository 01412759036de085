"""Clipped samples as bounds: the objective's minimum, judged by its own gradient and by scenes that are known."""

from __future__ import annotations

import pytest
import torch

import deconv_cli
from deconv_cli.diagnostics.stored_samples import find_clipped
from deconv_cli.kernels.sources.formula import make_kernel
from deconv_cli.noise_model import NoiseModel
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.geometry import Geometry
from deconv_cli.solvers.clipped import (
    CLOSE_TOLERANCE,
    DEFAULT_TOLERANCE,
    EXCESS_WEIGHT,
    HUBER_THRESHOLD,
    OBJECTIVE,
    solve_clipped,
)
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solution import Status, StoppingRule

KERNEL = make_kernel("disk:2.5")
BOUND = 0.8


def problem_of(boundary="unknown", penalty="gradient", size=(14, 12), lam=1e-2):
    taps = KERNEL.double()[None, None]
    operator = Convolution.of_geometry(taps, Geometry.of_image(size, tuple(taps.shape[2:]), "same"), boundary)
    return TikhonovProblem(operator, lam, penalty=penalty)


def clipped_data(problem, n_images=2):
    generator = torch.Generator().manual_seed(4)
    scenes = torch.rand(n_images, *problem.operator.input_shape, generator=generator, dtype=torch.float64)
    scenes[..., 5:10, 4:9] += 3
    return problem.operator.forward(scenes).clamp_max(BOUND)


@pytest.mark.parametrize("boundary", ["unknown", "zero", "reflect"])
@pytest.mark.parametrize("penalty", ["gradient", "identity"])
def test_the_gradient_of_the_objective_vanishes(boundary, penalty):
    problem = problem_of(boundary, penalty)
    y = clipped_data(problem)
    is_clipped = y >= BOUND
    solution = solve_clipped(problem, y, is_clipped, StoppingRule(1e-9, 2000))
    assert solution.status is Status.CONVERGED
    x = solution.value.clone().requires_grad_()
    residual = y - problem.operator.forward(x)
    above = torch.where(is_clipped, -residual, 0).clamp_min(0)
    far = (above - HUBER_THRESHOLD * y).clamp_min(0)  # where Huber's objective is a line that touches the parabola
    counted = torch.where(above > 0, EXCESS_WEIGHT * (above.square() - far.square()), residual.square())
    penalized = problem.penalty_operator.forward(x)
    objective = 0.5 * counted.sum() + 0.5 * problem.weight * penalized.square().sum()
    (gradient,) = torch.autograd.grad(objective, x)
    assert float(gradient.norm()) < 1e-8 * float(problem.operator.adjoint(y).norm())
    assert bool((is_clipped & (problem.operator.forward(solution.value) > y)).any())


def test_nothing_clipped_is_least_squares():
    problem = problem_of()
    y = clipped_data(problem)
    solution = solve_clipped(problem, y, torch.zeros_like(y, dtype=torch.bool), StoppingRule(1e-10, 2000))
    plain = deconv_cli.solve(problem.operator, y, penalty="gradient", lam=problem.lam)
    assert torch.allclose(solution.value, plain.value, atol=1e-7)


@pytest.mark.parametrize("boundary", ["unknown", "reflect"])
def test_data_may_lie_in_memory_in_any_order(boundary):
    problem = problem_of(boundary)
    y = clipped_data(problem)
    rule = StoppingRule(DEFAULT_TOLERANCE, 200)
    turned = y.movedim(0, -1).contiguous().movedim(-1, 0)
    expected = solve_clipped(problem, y, y >= BOUND, rule).value
    torch.testing.assert_close(solve_clipped(problem, turned, turned >= BOUND, rule).value, expected)


def test_iterations_that_run_out_are_said():
    problem = problem_of()
    y = clipped_data(problem)
    assert solve_clipped(problem, y, y >= BOUND, StoppingRule(1e-9, 3)).status is Status.MAX_ITERATIONS


@pytest.mark.parametrize("columns", [1, 12])
def test_the_certificates_of_the_steps_are_those_of_the_estimate(columns):
    """On a torus of 27 columns and on one of 40: spectra of odd and even lengths end differently."""
    problem = problem_of(size=(14, columns))
    y = clipped_data(problem)
    solution = solve_clipped(problem, y, y >= BOUND, StoppingRule(1e-9, 3))
    assert solution.residual_norms[-1] == pytest.approx(solution.certificate, rel=1e-6)


@pytest.mark.parametrize(("size", "penalty"), [((61, 50), "gradient"), ((40, 57), "identity")])
def test_filling_in_samples_and_a_ring_solves_the_problem(size, penalty):
    """The last certificate is still that of the torus: no step on the images was left to do."""
    problem = problem_of(penalty=penalty, size=size, lam=1e-3)
    y = clipped_data(problem)
    start = deconv_cli.solve(problem.operator, y, penalty=penalty, lam=problem.lam).value
    solution = solve_clipped(problem, y, y >= BOUND, StoppingRule(DEFAULT_TOLERANCE, 200), start=start)
    assert solution.residual_norms[-1] < 0.9 * DEFAULT_TOLERANCE
    assert solution.certificate < DEFAULT_TOLERANCE
    assert abs(solution.residual_norms[-1] / solution.certificate - 1) > 1e-6
    exact = solve_clipped(problem, y, y >= BOUND, StoppingRule(1e-9, 2000)).value
    change = problem.operator.forward(solution.value - exact)[y < BOUND]
    assert float(change.norm()) < 1e-4 * float(y.norm())
    assert torch.allclose(solution.residual, y - problem.operator.forward(solution.value))


@pytest.fixture(scope="module")
def lamps():
    """A night scene in 8 bits, with lamps far brighter than its range, and its truth."""
    scene = torch.rand(1, 76, 72, generator=torch.Generator().manual_seed(0)) * 60 + 40
    for row, column in ((20, 20), (40, 50), (55, 18)):
        scene[:, row : row + 6, column : column + 6] = 900
    y = deconv_cli.forward(scene, KERNEL, padding="valid")
    y = y + torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    edge = [(k - 1) // 2 for k in KERNEL.shape]
    return y.round().clamp(0, 255).byte(), scene[:, edge[0] : -edge[0], edge[1] : -edge[1]]


def test_full_samples_of_a_picture_no_longer_ring(lamps):
    y, truth = lamps
    options = {"defaults": "picture", "lam": 1e-3}
    bounded, measured = deconv_cli.invert(y, KERNEL, **options), deconv_cli.invert(y, KERNEL, noise="white", **options)
    dark = (truth < 200) & (y < 250)
    errors = [float((result.image - truth)[dark].square().mean().sqrt()) for result in (bounded, measured)]
    assert errors[0] < 0.5 * errors[1]
    assert "were treated as lower bounds" in bounded.notes[0]
    assert measured.notes == ()
    assert float(bounded.image.max()) > 500


def test_a_model_of_the_noise_leaves_full_samples_bounds(lamps):
    """Only the setting `white` makes them measurements, wherever a model says that it came from."""
    y, _ = lamps
    options = {"defaults": "picture", "lam": 1e-3}
    for model in (NoiseModel(sigma=1), NoiseModel(sigma=1, source="white"), NoiseModel(sigma=1, source="a.json")):
        assert "were treated as lower bounds" in deconv_cli.invert(y, KERNEL, noise=model, **options).notes[0]
    assert deconv_cli.invert(y, KERNEL, noise="white", **options).notes == ()


@pytest.mark.parametrize(("lam", "tolerance"), [(1e-6, 1e-6), (1e-4, CLOSE_TOLERANCE), (300.0, DEFAULT_TOLERANCE)])
def test_the_solver_arrives_under_any_lambda(lam, tolerance):
    """Where nothing curves a whole step may go much too far, and single precision has too few digits."""
    generator = torch.Generator().manual_seed(0)
    scene = torch.rand(1, 144, 144, generator=generator) * 60 + 40
    for row, column in ((20, 20), (50, 90), (100, 40)):
        scene[:, row : row + 10, column : column + 10] = 900
    kernel = make_kernel("gaussian:1")
    y = deconv_cli.forward(scene, kernel, boundary="reflect")
    y = (y + torch.randn(y.shape, generator=generator)).round().clamp(0, 255).byte()
    options = {"defaults": "picture", "lam": lam, "tolerance": tolerance, "max_iterations": 5000}
    solution = deconv_cli.invert(y, kernel, **options).solution
    assert solution.objective == OBJECTIVE
    assert solution.status is Status.CONVERGED


def test_a_picture_that_is_full_all_over_is_measured():
    white = torch.full((1, 60, 60), 255, dtype=torch.uint8)
    result = deconv_cli.invert(white, KERNEL, defaults="picture", lam=1e-3)
    assert not result.has_bounds
    assert result.notes == ()


def test_counts_of_32_bits_are_never_full(lamps):
    y, _ = lamps
    options = {"defaults": "picture", "lam": 1e-3, "noise": "auto"}
    assert deconv_cli.invert(y.int() * 1000, KERNEL, **options).notes == ()
    full = deconv_cli.invert(y.int() * 257, KERNEL, **options)
    assert "were treated as lower bounds" in full.notes[0]
    assert full.clipping.highest == 65_535


def test_samples_beside_full_ones_may_be_a_little_below():
    y = torch.full((1, 40, 40), 90.0)
    y[0, 10:14, 10:14] = 255.0
    y[0, 10, 14], y[0, 30, 30] = 250.0, 250.0
    found = find_clipped(y, 255.0, KERNEL.shape)
    assert found[0, 10, 14]
    assert int(found.sum()) == 17


def test_full_samples_among_none_but_full_ones_are_measurements():
    """Nothing but far ends would hold the estimate of a wide white background."""
    y = torch.full((2, 40, 50), 90.0)
    y[0, 8:32, 10:40] = 255.0
    y[1, 20, 20] = 255.0
    reach = [n // 2 for n in KERNEL.shape]
    expected = y == 255.0
    expected[0, 8 + reach[0] : 32 - reach[0], 10 + reach[1] : 40 - reach[1]] = False
    assert torch.equal(find_clipped(y, 255.0, KERNEL.shape), expected)


def test_a_sample_at_an_end_is_seen_from_everywhere_within_half_the_kernel():
    y = torch.full((1, 40, 50), 255.0)
    y[0, 0, 49] = 90.0
    expected = torch.zeros(1, 40, 50, dtype=torch.bool)
    expected[0, :8, -11:] = True
    expected[0, 0, 49] = False
    assert torch.equal(find_clipped(y, 255.0, (15, 21)), expected)


def test_a_picture_without_full_samples_has_none():
    assert find_clipped(torch.full((1, 40, 40), 250.0), 255.0, KERNEL.shape) is None
