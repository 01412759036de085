"""Total variation, compared with a long run of another algorithm (Chambolle and Pock) on the dense matrices."""

import math

import pytest
import torch
from cases import random

from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers import admm, strip
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.solution import Status
from deconv_cli.solvers.total_variation import TotalVariationEstimator

SIZE = (8, 7)
BLUR = random((1, 1, 3, 3), seed=3).abs()
BLUR /= BLUR.sum()


def estimator(taps, boundary="unknown", *, size=SIZE, weight=0.05, noise=None, **options):
    options = {"tolerance": 1e-6, "max_iterations": 20_000} | options
    settings = ResolvedSettings(boundary=boundary, **options)
    return TotalVariationEstimator(Kernel.from_tensor(taps), size, settings, weight=weight, noise=noise)


def blocks(estimate, *, noise=0.05, batch=()):
    """Outputs of an image of three flat regions, with noise."""
    shape = (*batch, *estimate.operator.input_shape)
    x = torch.zeros(shape, dtype=torch.float64)
    x[..., : shape[-2] // 2, :] += 1.0
    x[..., shape[-1] // 3 :] += 0.5
    x *= 1 + torch.arange(shape[-3], dtype=torch.float64)[:, None, None]
    y = estimate.operator.forward(x)
    return x, y + noise * random(tuple(y.shape), seed=6)


def test_a_torus_of_a_fast_length_leaves_the_minimum_as_it_is(monkeypatch):
    estimate = estimator(BLUR, size=(21, 27), tolerance=1e-4)  # 23 × 29 with the border
    _, y = blocks(estimate)
    found = estimate.solve(y)
    monkeypatch.setattr(strip, "near_fast_size", lambda n: n)
    exact = estimate.solve(y)
    assert found.status is exact.status is Status.CONVERGED
    torch.testing.assert_close(estimate.frame(found.value), estimate.frame(exact.value), rtol=0, atol=1e-3)
    assert not torch.equal(found.value, exact.value)  # the lengths did differ


def test_edges_are_sharper_than_under_a_quadratic_penalty():
    estimate = estimator(BLUR, size=(24, 24), weight=None, noise=0.05, tolerance=1e-4)
    x, y = blocks(estimate)
    restored = estimate.frame(estimate.solve(y).value)
    quadratic = []
    for lam in (1e-3, 1e-2, 3e-2, 1e-1, 3e-1):
        settings = ResolvedSettings(boundary="unknown", lam=lam, penalty="gradient")
        quadratic.append(PseudoInverse(Kernel.from_tensor(BLUR), (24, 24), settings)(y))
    truth = estimate.frame(x[None])
    assert (restored - truth).norm() < 0.6 * min((estimate - truth).norm() for estimate in quadratic)


@pytest.mark.parametrize("boundary", ["unknown", "zero", "circular"])
def test_the_weight_follows_from_the_noise(boundary):
    estimate = estimator(BLUR, boundary, size=(20, 22), weight=None, noise=0.05, tolerance=1e-4)
    _, y = blocks(estimate)
    solution = estimate.solve(y)
    assert solution.status is Status.CONVERGED
    residual = estimate.arrange(y) - estimate.operator.forward(solution.value)
    assert float(residual.square().mean().sqrt()) == pytest.approx(0.05, rel=0.02)
    # The same as with that weight from the start, which the sentence names.
    again = estimator(BLUR, boundary, size=(20, 22), weight=solution.weight, tolerance=1e-4).solve(y)
    torch.testing.assert_close(again.value, solution.value, rtol=0, atol=2e-2)
    assert f"{solution.weight:.4g}·TV(x)" in solution.objective


def test_noise_without_a_scene_gives_a_flat_image():
    estimate = estimator(BLUR, size=(16, 16), weight=None, noise=0.2, tolerance=1e-3)
    y = 1 + 0.1 * random((1, 16, 16), seed=2)
    value = estimate.frame(estimate.solve(y).value)
    assert float(value.max() - value.min()) < 0.02
    assert float(value.mean()) == pytest.approx(float(y.mean()), abs=0.02)


def test_noise_that_no_weight_explains_is_a_status():
    estimate = estimator(BLUR, "zero", size=(12, 12), padding="full", weight=None, noise=1e-4)
    y = random(estimate.operator.output_shape, seed=1)
    solution = estimate.solve(y)
    assert solution.status is Status.NOISE_NOT_REACHED
    assert not solution.status.is_success
    assert torch.isfinite(solution.value).all()


def test_a_batch_gives_what_its_images_give_alone():
    estimate = estimator(BLUR, tolerance=1e-5)
    _, y = blocks(estimate, batch=(2,))
    y[1] = y[1].flip(-1)
    together = estimate.solve(y).value
    for i in range(2):
        torch.testing.assert_close(together[i], estimate.solve(y[i]).value, rtol=0, atol=2e-3)


def test_the_default_ends_where_a_picture_hardly_gains():
    x, y = blocks(estimator(BLUR, size=(24, 26)))
    found, exact = (
        estimator(BLUR, size=(24, 26), tolerance=tolerance, max_iterations=400).solve(y) for tolerance in (None, 1e-4)
    )
    assert found.status is exact.status is Status.CONVERGED
    assert found.n_iterations < min(0.6 * exact.n_iterations, 12)
    error, least = ((solution.value[0] - x).norm() for solution in (found, exact))
    assert error < 1.02 * least  # photographs lose less than such blocks


def test_the_default_of_signals_keeps_steps_sharp():
    blur = Kernel(torch.hann_window(31, dtype=torch.float64)[None, None, 1:-1] / 15, False)
    estimates = [
        TotalVariationEstimator(blur, (400,), ResolvedSettings(boundary="unknown", tolerance=tolerance), weight=0.05)
        for tolerance in (None, 1e-4)
    ]
    x = (torch.arange(428, dtype=torch.float64) / 40).sin().sign()[None]
    y = estimates[0].operator.forward(x) + 0.05 * random((1, 400), seed=6)
    error, least = ((estimate.solve(y).value - x).norm() for estimate in estimates)
    assert error < 1.2 * least


@pytest.mark.parametrize("weight", [1e-4, 1e-2, 1.0])
def test_float32_reaches_a_certificate_of_1e_4(weight):
    estimate = estimator(BLUR.float(), size=(24, 25), weight=weight, tolerance=1e-4, max_iterations=2000)
    _, y = blocks(estimator(BLUR, size=(24, 25)))
    solution = estimate.solve(100 + 100 * y.float())
    assert solution.status is Status.CONVERGED
    assert solution.certificate <= 1e-4
    assert solution.value.dtype == torch.float32


def test_black_and_flat_data_stay_what_they_are():
    estimate = estimator(BLUR)
    flat = estimate.solve(torch.full((1, 8, 7), 3.0, dtype=torch.float64))
    assert flat.status is Status.CONVERGED
    torch.testing.assert_close(flat.value, torch.full_like(flat.value, 3.0), rtol=1e-6, atol=0)
    black = estimate.solve(torch.zeros(1, 8, 7, dtype=torch.float64))
    assert black.status is Status.CONVERGED
    assert not black.value.any()


def test_a_tolerance_out_of_reach_is_told(monkeypatch):
    estimate = estimator(BLUR.float(), tolerance=1e-12)
    monkeypatch.setattr(admm, "MAX_STEPS_WITHOUT_GAIN", 50)
    assert estimate.solve(blocks(estimator(BLUR))[1].float()).status is Status.STAGNATED


@pytest.mark.parametrize("noise", [0.0, 1e-17, math.nan])
def test_a_weight_cannot_follow_from_no_noise(noise):
    estimate = estimator(BLUR, weight=None, noise=noise)
    with pytest.raises(UsageError, match="no noise was found"):
        estimate.solve(blocks(estimate)[1])


def test_fewer_outputs_than_inputs_are_refused():
    with pytest.raises(UsageError, match="leaves constant images undetermined"):
        estimator(random((2, 3, 3, 3)))
