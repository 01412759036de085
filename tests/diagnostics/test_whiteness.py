"""The test of whiteness: its autocorrelation by counting, and its statistic by what white noise gives."""

import math
from statistics import NormalDist

import pytest
import torch
from cases import random

from deconv_cli.diagnostics.hann_window import FadedImages
from deconv_cli.diagnostics.noise_level import estimate_noise_of_blurred
from deconv_cli.diagnostics.whiteness import measure_whiteness


def correlation_by_hand(planes, down, across):
    total = n_pairs = 0
    _, height, width = planes.shape
    for i in range(max(0, -down), min(height, height - down)):
        for j in range(max(0, -across), min(width, width - across)):
            total += float((planes[:, i, j] * planes[:, i + down, j + across]).sum())
            n_pairs += len(planes)
    n_pixels = height * width
    variance = float(planes.square().sum()) / (len(planes) * (n_pixels - 1))
    return total / n_pairs / variance + 1 / n_pixels


def test_the_autocorrelation_is_that_of_counting():
    planes = random((2, 9, 12))
    centered = planes - planes.mean(dim=(-2, -1), keepdim=True)
    found = measure_whiteness(planes)
    assert found.max_lag == 4
    for down, across in [(0, 0), (0, 1), (1, 0), (-2, 3), (4, -4), (3, 2)]:
        value = float(found.autocorrelation[4 + down, 4 + across])
        assert value == pytest.approx(correlation_by_hand(centered, down, across), abs=1e-12)
    assert found.n_lags == 40
    half = found.autocorrelation.flatten()[:40]
    assert found.largest == pytest.approx(float(half.abs().max()))


@pytest.mark.parametrize("shape", [(64, 14, 14), (48, 8, 8)])
def test_many_small_planes_of_white_noise_are_not_accused(shape):
    """Taking off the mean of every plane leaves neighbors a little less alike, which many planes would add up."""
    found = [measure_whiteness(random(shape, seed=seed)).p_value for seed in range(100)]
    assert sum(value < 0.05 for value in found) <= 13  # 5 are expected, 14 in less than one of a thousand tests


def test_white_noise_gives_a_statistic_that_follows_chi_square():
    found = [measure_whiteness(random((48, 40), seed=seed)[None]) for seed in range(200)]
    n_lags = found[0].n_lags
    assert n_lags == 60
    ranks = sorted(one.p_value for one in found)
    # Kolmogorov and Smirnov's distance from even p-values: 1.63 / √200 is exceeded once in a hundred times.
    assert max(abs(rank - (at + 0.5) / 200) for at, rank in enumerate(ranks)) < 1.63 / 200**0.5
    for one in found[:5]:
        half = one.statistic / 2
        tail = math.exp(-half) * sum(half**k / math.factorial(k) for k in range(n_lags // 2))
        assert one.p_value == pytest.approx(tail, rel=1e-6)
        assert one.z_score == pytest.approx(NormalDist().inv_cdf(1 - tail), abs=0.03)


def test_a_smooth_residual_is_not_white():
    smooth = torch.nn.functional.avg_pool2d(random((1, 66, 66))[None], 3, stride=1)[0]
    found = measure_whiteness(smooth)
    assert found.p_value < 1e-12
    assert found.z_score > 20
    assert found.largest == pytest.approx(2 / 3, abs=0.05)


@pytest.mark.parametrize("residual", [torch.zeros(1, 8, 8), torch.ones(1, 1, 1)])
def test_where_there_is_nothing_to_test_nothing_is_found(residual):
    found = measure_whiteness(residual)
    assert (found.n_lags, found.p_value, found.z_score) == (0, 1.0, 0.0)


def scene(size=160):
    """Smooth hills and a sharp square, blurred by 9 × 9 pixels."""
    across = torch.linspace(0, 6, size, dtype=torch.float64)
    image = 50 * torch.sin(across)[:, None] * torch.cos(1.7 * across) + 100
    image[40:90, 60:120] += 60
    return torch.nn.functional.avg_pool2d(image[None, None], 9, stride=1)[0]


def noise_of(y, n_axes=2):
    return estimate_noise_of_blurred(FadedImages.of(y, n_axes))


@pytest.mark.parametrize("noise", [0.1, 2.0])
def test_the_noise_of_a_blurred_picture_is_found(noise):
    image = scene()
    assert noise_of(image + noise * random(image.shape, seed=9)) == pytest.approx(noise, rel=0.1)


@pytest.mark.parametrize(("n_axes", "size"), [(1, (4000,)), (3, (20, 24, 22))])
def test_the_noise_of_a_smooth_signal_and_stack_is_found(n_axes, size):
    smooth = 30 * torch.ones(size, dtype=torch.float64).cumsum(0) / size[0]
    assert noise_of((smooth + 2.5 * random(size))[None], n_axes) == pytest.approx(2.5, rel=0.15)


def test_noise_that_cannot_be_told_from_the_picture_is_not_made_up():
    assert noise_of(random((1, 64, 64))) is None
    # A picture without noise: what is left at the highest frequencies is no more than the window lets through.
    assert (noise_of(scene()) or 0) < 1e-4 * float(scene().std())
    assert noise_of(torch.ones(1, 64, 64)) is None
    # Too few samples to tell one frequency from another.
    steep = 100 * torch.arange(10.0, dtype=torch.float64).expand(1, 10, 10)
    assert noise_of(steep + random((1, 10, 10))) is None
