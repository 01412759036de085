"""The nonnegative estimate, compared with a long projected gradient on the dense matrix, and its own conditions."""

import torch
from cases import random

import deconv_cli
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.nonnegative import LEAST_TOLERANCE, MOST_TOLERANCE, NonnegativeEstimator
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.solution import Status

SIZE = (8, 7)
BLUR = random((1, 1, 3, 3), seed=3).abs()


def estimator(taps, boundary="unknown", *, size=SIZE, lam=1e-2, penalty="identity", **options):
    settings = ResolvedSettings(boundary=boundary, lam=lam, penalty=penalty, **options)
    return NonnegativeEstimator(PseudoInverse(Kernel.from_tensor(taps), size, settings))


def stars(estimate, *, noise=0.1, batch=()):
    """Outputs of images that are zero almost everywhere, with noise that pulls an estimate below zero."""
    operator = estimate.operator
    x = (random((*batch, *operator.input_shape), seed=5) - 1.2).clamp_min(0)
    return operator.forward(x) + noise * random((*batch, *operator.output_shape), seed=6)


def test_a_positive_estimate_is_the_unconstrained_one():
    estimate = estimator(BLUR, "zero", lam=1e-4)
    y = estimate.operator.forward(torch.ones(1, *estimate.operator.input_shape, dtype=torch.float64))[0]
    expected = estimate.inverse.solve(y)
    assert expected.value.min() > 0
    torch.testing.assert_close(estimate.solve(y).value, expected.value, rtol=1e-8, atol=1e-8)


def test_by_default_it_ends_near_enough_to_the_minimum():
    y = stars(estimator(BLUR, size=(40, 37)))
    found, closer, minimum = (
        deconv_cli.invert(y, BLUR[0, 0], nonnegative=True, lam=1e-3, tolerance=tolerance)
        for tolerance in (None, 1e-6, 1e-9)
    )
    assert found.solution.certificate <= LEAST_TOLERANCE
    assert found.solution.n_iterations < closer.solution.n_iterations
    assert float((found.image - minimum.image).norm()) < 2e-3 * float(minimum.image.norm())
    taps = random((1, 1, 3, 3, 3), seed=3).abs()
    stack = stars(estimator(taps, size=(12, 13, 14)))
    loose = deconv_cli.invert(stack, taps[0, 0], dimensions=3, nonnegative=True, lam=1e-2)
    assert LEAST_TOLERANCE < loose.solution.certificate <= MOST_TOLERANCE


def test_float32_reaches_its_tolerance():
    taps = random((1, 1, 5, 5), seed=1).abs().float()
    estimate = estimator(taps, size=(40, 37), lam=1e-3, penalty="gradient")
    solution = estimate.solve(stars(estimator(taps.double(), size=(40, 37))).float())
    assert solution.value.dtype == torch.float32
    assert solution.status is Status.CONVERGED
    assert solution.certificate <= 1e-6


def test_a_batch_gives_what_its_images_give_alone():
    estimate = estimator(BLUR)
    y = stars(estimate, batch=(3,)) * torch.tensor([1.0, 1e-3, 0.0], dtype=torch.float64)[:, None, None, None]
    together = estimate.solve(y).value
    for i in range(3):
        alone = estimate.solve(y[i]).value
        torch.testing.assert_close(together[i], alone, rtol=1e-8, atol=1e-9 * float(alone.max()))


def test_spent_iterations_are_told():
    """Those within a Newton step count as well: a tiny λ makes each of them a long one."""
    for n in (1, 30, 100):
        estimate = estimator(BLUR, size=(20, 20), lam=1e-6, max_iterations=n)
        solution = estimate.solve(stars(estimate))
        assert solution.status is Status.MAX_ITERATIONS
        assert n <= solution.n_iterations <= n + 1  # the step that is under way ends


def test_a_tolerance_out_of_reach_is_told():
    estimate = estimator(BLUR.float(), size=(20, 20), tolerance=1e-12)
    assert estimate.solve(stars(estimator(BLUR, size=(20, 20))).float()).status is Status.STAGNATED
