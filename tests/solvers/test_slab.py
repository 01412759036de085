"""The border of signals and stacks: the slab solver against dense linear algebra."""

import pytest
import torch
from cases import mild_kernel, random

import deconv_cli
from deconv_cli.operators.convolution import Convolution
from deconv_cli.solvers import slab, strip
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.slab import SLAB
from deconv_cli.solvers.solution import StoppingRule
from deconv_cli.solvers.solver import choose_method

RULE = StoppingRule(tolerance=1e-11, max_iterations=500)

# (C_out, C_in, *k), the size of the image, padding and boundary.
MISSING = {
    "unknown": ((1, 1, 3, 3, 2), (6, 5, 7), "same", "unknown"),
    "unknown channels": ((2, 2, 3, 1, 4), (5, 4, 6), "same", "unknown"),
    "unknown wide": ((2, 3, 2, 3, 2), (4, 5, 4), "same", "unknown"),
    "unknown tall": ((3, 2, 3, 2, 2), (4, 5, 4), "same", "unknown"),
    "many channels": ((5, 5, 2, 1, 2), (4, 3, 5), "same", "unknown"),
    "padded": ((1, 1, 5, 3, 3), (6, 5, 4), (1, 0, 1), "unknown"),
    "valid": ((1, 1, 4, 2, 3), (8, 5, 6), "valid", "zero"),
    "line": ((1, 1, 5), (16,), "same", "unknown"),
    "line of channels": ((1, 2, 4), (11,), "valid", "reflect"),
    "four axes": ((1, 1, 2, 1, 2, 2), (3, 3, 4, 3), "same", "unknown"),
}
TIED = {
    "full": ((1, 1, 3, 2, 3), (4, 5, 3), "full", "zero"),
    "full channels": ((2, 2, 2, 3, 2), (3, 5, 4), "full", "zero"),
    "full tall": ((3, 2, 2, 2, 2), (4, 3, 4), "full", "zero"),
    "full line": ((1, 1, 5), (12,), "full", "zero"),
}


def problem_of(shape, size, padding, boundary, lam, penalty="identity"):
    kernel = mild_kernel(shape, 0.2)
    return TikhonovProblem(Convolution(kernel, size, padding=padding, boundary=boundary), lam, penalty=penalty)


def check(problem):
    """Hold a batch, the inverse of the normal equations and the transpose against dense matrices."""
    assert SLAB.covers(problem) is None
    inverse = SLAB.build(problem, RULE)
    A = problem.operator.as_matrix()
    gram = A.T @ A
    if problem.lam > 0:
        gram = gram + problem.weight * problem.penalty_operator.gram.as_matrix()
    dense = torch.linalg.pinv(gram, rtol=1e-12)
    pseudo_inverse = torch.linalg.pinv(A, rtol=1e-11) if problem.lam == 0 else dense @ A.T
    y, g = random((2, *problem.operator.output_shape), seed=1), random((2, *problem.operator.input_shape), seed=2)
    solution = inverse.solve(y).raise_for_status()
    pairs = (
        (solution.value, y, pseudo_inverse),
        (inverse.solve_normal(g), g, dense),
        (inverse.solve_transposed(g), g, pseudo_inverse.T),
    )
    for found, given, matrix in pairs:
        expected = (given.flatten(1) @ matrix.T).reshape(found.shape)
        assert (found - expected).norm() <= 2e-9 * expected.norm()


@pytest.mark.parametrize("lam", [1e-1, 1e-2])
@pytest.mark.parametrize("name", [*MISSING, *TIED])
def test_it_equals_the_dense_solution(name, lam):
    check(problem_of(*(MISSING | TIED)[name], lam))


@pytest.mark.parametrize(
    ("name", "penalty"),
    [
        *((name, "gradient") for name in MISSING if name not in ("unknown wide", "many channels", "line of channels")),
        *((name, "laplacian") for name in ("unknown", "valid", "line")),
    ],
)
def test_it_equals_the_dense_solution_under_a_penalty_on_differences(name, penalty):
    check(problem_of(*MISSING[name], 1e-2, penalty))


@pytest.mark.parametrize(
    "name", ["unknown", "unknown channels", "unknown wide", "padded", "valid", "line", "line of channels", *TIED]
)
def test_without_a_penalty_it_is_the_pseudo_inverse(name):
    check(problem_of(*(MISSING | TIED)[name], 0.0))


def iterations(size, taps=(9, 7, 7), lam=1e-3):
    operator = Convolution(ball(taps).float(), size, boundary="unknown")
    scene = (random(operator.input_shape) > 2).float() + 0.1
    y = operator.forward(scene) + 1e-3 * random(operator.output_shape, seed=1, dtype=torch.float32)
    problem = TikhonovProblem(operator, lam)
    return SLAB.build(problem, StoppingRule(1e-6, 500)).solve(y).raise_for_status().n_iterations


def ball(size):
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=torch.float64) for n in size), indexing="ij")
    inside = (sum(axis.square() for axis in axes) <= 1.01).double()
    return inside / inside.sum()


def test_iterations_do_not_grow_with_the_stack():
    counts = [iterations((n, n, n)) for n in (16, 32, 48)]
    assert max(counts) <= counts[0] + 2
    assert max(counts) <= 20


def test_fewer_matrices_cost_iterations_but_no_accuracy(monkeypatch):
    problem = problem_of((1, 1, 3, 3, 2), (6, 5, 7), "same", "unknown", 1e-2)
    y = random((1, 6, 5, 7))
    exact = SLAB.build(problem, RULE).solve(y)
    monkeypatch.setattr(slab, "most_numbers", lambda torus: 0)
    plain = SLAB.build(problem, RULE).solve(y).raise_for_status()
    assert plain.n_iterations > exact.n_iterations
    assert (plain.value - exact.value).norm() <= 1e-9 * exact.value.norm()


def test_a_tiny_lambda_is_solved_in_double_precision():
    operator = Convolution(ball((5, 5, 5)).float(), (12, 11, 10), boundary="unknown")
    y = random(operator.output_shape, dtype=torch.float32)
    solution = SLAB.build(TikhonovProblem(operator, 1e-6), StoppingRule(1e-6, 500)).solve(y)
    wide = SLAB.build(TikhonovProblem(operator.in_float64(), 1e-6), StoppingRule(1e-10, 500)).solve(y.double())
    assert solution.value.dtype == torch.float32
    assert (solution.value - wide.value).norm() <= 1e-2 * wide.value.norm()


@pytest.mark.parametrize(("boundary", "padding"), [("unknown", "same"), ("zero", "full")])
def test_derivatives_in_data_and_taps_pass_through(boundary, padding):
    taps = problem_of((1, 1, 2, 3, 2), (3, 4, 3), padding, boundary, 1e-2).operator.kernel[0, 0].requires_grad_()
    shape = Convolution(taps.detach(), (3, 4, 3), padding=padding, boundary=boundary).output_shape
    y = random(shape, seed=1).requires_grad_()

    def restore(y, taps):
        settings = {"boundary": boundary, "padding": padding, "lam": 1e-2, "method": "slab", "tolerance": 1e-12}
        return deconv_cli.pseudo_inverse(taps, input_size=(3, 4, 3), dimensions=3, **settings)(y)

    assert torch.autograd.gradcheck(restore, (y, taps), rtol=1e-4, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize(
    ("shape", "size", "padding", "boundary", "lam", "penalty", "reason"),
    [
        ((1, 1, 3, 3), (6, 5), "same", "unknown", 1e-2, "identity", "is for one dimension and three"),
        ((2, 2, 9, 9), (6, 5), "same", "unknown", 1e-2, "gradient", "gradient for one channel"),
        ((1, 1, 3, 3, 3), (6, 5, 4), "same", "zero", 1e-2, "identity", "boundary zero ties pixels"),
        ((1, 1, 3, 3, 3), (6, 5, 4), "same", "reflect", 1e-2, "identity", "boundary reflect ties pixels"),
        ((1, 1, 3, 3, 3), (6, 5, 4), "full", "replicate", 1e-2, "identity", "boundary replicate ties pixels"),
        ((1, 1, 3, 3, 3), (6, 5, 4), "same", "circular", 1e-2, "identity", "boundary circular"),
        ((1, 1, 3, 3, 3), (6, 5, 4), "full", "zero", 1e-2, "gradient", "the penalty is gradient"),
        ((2, 1, 3, 3, 3), (6, 5, 4), "same", "unknown", 0.0, "identity", "needs λ > 0"),
    ],
)
def test_what_it_does_not_cover_it_says(shape, size, padding, boundary, lam, penalty, reason):
    problem = TikhonovProblem(
        Convolution(random(shape), size, padding=padding, boundary=boundary), lam, penalty=penalty
    )
    with pytest.raises(deconv_cli.UsageError, match=f"method slab .*{reason}"):
        choose_method(problem, "slab")


@pytest.mark.parametrize(
    ("kernel_size", "size", "boundary", "penalty", "method"),
    [
        ((9, 7, 7), (24, 48, 48), "unknown", "identity", "slab"),
        ((9, 7, 7), (24, 48, 48), "unknown", "gradient", "slab"),
        ((21, 13, 13), (20, 40, 40), "unknown", "gradient", "slab"),
        ((9, 7, 7), (24, 48, 48), "zero", "identity", "iterative"),
        ((5,), (2000,), "unknown", "identity", "slab"),
    ],
)
def test_auto_takes_it_where_it_is_the_cheapest(kernel_size, size, boundary, penalty, method):
    kernel = ball(kernel_size) if len(kernel_size) == 3 else random(kernel_size)
    problem = TikhonovProblem(Convolution(kernel, size, boundary=boundary), 1e-3, penalty=penalty)
    assert choose_method(problem).method == method


def test_a_recurrence_that_rounding_has_lost_is_stopped():
    """White noise under a small λ in float32: one image of the two cannot reach the tolerance."""
    steps = torch.arange(-2.0, 3.0)
    line = torch.exp(-0.5 * steps.square())
    taps = torch.exp(-0.5 * (steps / 1.2).square())[:, None, None] * line[:, None] * line
    settings = {"boundary": "unknown", "lam": 1e-4, "penalty": "gradient", "method": "slab", "max_iterations": 400}
    inverse = deconv_cli.pseudo_inverse(taps / taps.sum(), input_size=(14, 20, 18), dimensions=3, **settings)
    y = torch.randn(4, 1, 14, 20, 18, generator=torch.Generator().manual_seed(3))[:2]
    solution = inverse.solve(y)
    assert solution.certificate <= 5e-6
    assert solution.n_iterations < 400


@pytest.mark.parametrize(("size", "taps"), [((7, 6), (7, 5)), ((4, 5, 6), (5, 6, 6))])
def test_a_kernel_as_large_as_the_outputs_is_undone_among_them(monkeypatch, size, taps):
    monkeypatch.setattr(strip, "MIN_BAND_BYTES", 0)
    monkeypatch.setattr(strip, "_most_band_bytes", lambda _: 0)
    problem = problem_of((1, 1, *taps), size, "same", "unknown", 1e-2)
    assert slab.is_dual(problem)
    check(problem)


@pytest.mark.parametrize(("side", "n_taps", "lam"), [(13, 11, 1e-1), (14, 9, 1e-3), (12, 11, 1e-5)])
def test_under_a_penalty_on_differences_a_wide_kernel_is_undone_within_an_honest_bound(monkeypatch, side, n_taps, lam):
    monkeypatch.setattr(strip, "MIN_BAND_BYTES", 0)
    monkeypatch.setattr(strip, "_most_band_bytes", lambda _: 0)
    taps = ball((n_taps, n_taps)).float()[None, None]
    problem = TikhonovProblem(Convolution(taps, (side, side), boundary="unknown"), lam, penalty="gradient")
    A, L = (operator.as_matrix().double() for operator in (problem.operator, problem.penalty_operator))
    gram = A.T @ A + problem.weight * L.T @ L
    assert slab.bound_eigenvalues(problem) <= torch.linalg.eigvalsh(gram)[0]
    y = random(problem.operator.output_shape).float()
    solution = SLAB.build(problem, StoppingRule(1e-6, 500)).solve(y).raise_for_status()
    expected = torch.linalg.solve(gram, A.T @ y.double().flatten())
    assert (solution.value.flatten() - expected).norm() <= solution.distance_bound * expected.norm()
    assert solution.distance_bound <= 0.01


def test_a_wide_kernel_of_sum_zero_has_no_bound_under_a_penalty_on_differences(monkeypatch):
    monkeypatch.setattr(strip, "MIN_BAND_BYTES", 0)
    monkeypatch.setattr(strip, "_most_band_bytes", lambda _: 0)
    taps = ball((9, 9)).float()[None, None]
    for kernel, reason in ((taps, None), (taps - taps.mean(), "whose sum is not zero")):
        problem = TikhonovProblem(Convolution(kernel, (14, 14), boundary="unknown"), 1e-3, penalty="gradient")
        assert reason in (SLAB.covers(problem) or "") if reason else SLAB.covers(problem) is None


def test_a_kernel_as_large_as_the_picture_takes_few_iterations(monkeypatch):
    monkeypatch.setattr(strip, "MIN_BAND_BYTES", 0)
    taps = ball((127, 127)).float()
    scene = (random((1, 254, 254)) > 2).float()
    y = torch.nn.functional.conv2d(scene, taps[None, None]) + 0.01 * random((1, 128, 128), seed=1).float()
    inverse = deconv_cli.pseudo_inverse(taps, input_size=(128, 128), boundary="unknown", lam=1e-3)
    assert inverse.choice.method == "slab"
    assert inverse.solve(y).raise_for_status().n_iterations <= 15
