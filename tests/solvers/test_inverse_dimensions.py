"""Lines and volumes: every solver against dense linear algebra, and the priors against their minima."""

import pytest
import torch
from cases import random

from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.parts import BOUNDARIES, PENALTIES, SOLVERS
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.nonnegative import NonnegativeEstimator
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.richardson_lucy import RichardsonLucyEstimator
from deconv_cli.solvers.solution import Status
from deconv_cli.solvers.total_variation import TotalVariationEstimator

# (C_out, C_in, *k) and the size of the image.
PROBLEMS = {
    "line": ((1, 1, 3), (11,)),
    "line of channels": ((3, 2, 4), (9,)),
    "volume": ((1, 1, 2, 3, 2), (4, 5, 4)),
    "volume of channels": ((2, 2, 3, 1, 2), (4, 3, 4)),
}


def mild_kernel(shape):
    """Taps around a unit impulse, whose inverse is well conditioned under most boundaries."""
    kernel = 0.1 * random(shape, seed=sum(shape))
    for channel in range(min(shape[:2])):
        kernel[(channel, channel, *((k - 1) // 2 for k in shape[2:]))] += 1
    return kernel


def inverse_of(problem, boundary, method="auto", **settings):
    shape, size = PROBLEMS[problem]
    wanted = ResolvedSettings(boundary=boundary, method=method, **settings)
    return PseudoInverse(Kernel(mild_kernel(shape), False), size, wanted)


def dense_solution(inverse, y):
    problem = inverse.problem
    matrix = problem.operator.as_matrix()
    if problem.lam > 0:
        matrix = torch.cat([matrix, problem.weight**0.5 * problem.penalty_operator.as_matrix()])
    data = torch.cat([y.flatten(), y.new_zeros(len(matrix) - y.numel())])
    return (torch.linalg.pinv(matrix, rtol=1e-11) @ data).reshape(problem.operator.input_shape)


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


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("boundary", ["zero", "unknown"])
def test_the_strip_says_that_it_is_for_two_dimensions(problem, boundary):
    with pytest.raises(UsageError, match="method strip is for two dimensions"):
        inverse_of(problem, boundary, "strip", lam=1e-2)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_gradients_pass_through(problem):
    shape, size = PROBLEMS[problem]
    taps = mild_kernel(shape).requires_grad_()
    inverse = PseudoInverse(Kernel(taps, False), size, ResolvedSettings(boundary="reflect", lam=1e-2))
    y = random(inverse.operator.output_shape).requires_grad_()

    def restore(data, kernel):
        return PseudoInverse(Kernel(kernel, False), size, ResolvedSettings(boundary="reflect", lam=1e-2))(data)

    assert torch.autograd.gradcheck(restore, (y, taps), rtol=1e-4, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("problem", ["line", "volume"])
@pytest.mark.parametrize("boundary", ["circular", "symmetric", "unknown"])
def test_nonnegative_estimates_fulfill_their_conditions(problem, boundary):
    estimate = NonnegativeEstimator(inverse_of(problem, boundary, lam=1e-3, penalty="gradient", tolerance=1e-9))
    y = random(estimate.operator.output_shape, seed=5)
    solution = estimate.solve(y).raise_for_status()
    x, operator = solution.value, estimate.operator
    slope = operator.adjoint(operator.forward(x) - y) + estimate.problem.penalty_gram(x)
    assert bool((x >= 0).all())
    assert bool((x == 0).any())
    assert float(torch.where(x > 0, slope, slope.clamp_max(0)).abs().max()) <= 1e-6 * float(y.norm())


@pytest.mark.parametrize("problem", ["line", "volume"])
@pytest.mark.parametrize("boundary", ["circular", "zero", "unknown"])
def test_no_image_has_less_total_variation(problem, boundary):
    shape, size = PROBLEMS[problem]
    settings = ResolvedSettings(boundary=boundary, tolerance=1e-5, max_iterations=20_000)
    estimate = TotalVariationEstimator(Kernel(mild_kernel(shape), False), size, settings, weight=0.05)
    x = torch.zeros(estimate.operator.input_shape, dtype=torch.float64)
    x[:, 1:3] = 1.0
    y = estimate.operator.forward(x) + 0.1 * random(estimate.operator.output_shape, seed=6)
    solution = estimate.solve(y)
    assert solution.status is Status.CONVERGED
    differences = PENALTIES["gradient"].operator(estimate.operator.input_shape, periodic=boundary == "circular")

    def objective(image):
        lengths = differences.forward(image).norm(dim=0)
        return float(0.5 * (estimate.operator.forward(image) - y).square().sum() + 0.05 * lengths.sum())

    lowest = objective(solution.value)
    for seed in range(30):
        nearby = solution.value + 10.0 ** -(seed % 5) * random(estimate.operator.input_shape, seed=seed)
        assert objective(nearby) >= lowest * (1 - 1e-5)


@pytest.mark.parametrize("problem", ["line", "volume"])
def test_richardson_lucy_reaches_its_conditions(problem):
    shape, size = PROBLEMS[problem]
    kernel = Kernel(mild_kernel(shape).abs(), True)
    settings = ResolvedSettings(boundary="replicate", tolerance=1e-6, max_iterations=20_000)
    y = RichardsonLucyEstimator(kernel, size, settings).operator.forward(1 + random((1, *size)).abs())
    batch = torch.stack([y, y.flip(-1)])
    estimate = RichardsonLucyEstimator(kernel, size, settings, gain=1e-12)
    solution = estimate.solve(batch)
    assert solution.value.shape == (2, 1, 1, *size)
    assert solution.status.is_success
    blurred = estimate.operator.forward(solution.value)
    slope = estimate.operator.adjoint(1 - batch[:, None] / blurred)
    assert float((solution.value * slope).abs().max()) <= 1e-3 * float(y.max())
    assert RichardsonLucyEstimator(kernel, size, settings).solve(batch).value.shape == (2, 1, 1, *size)
