"""Gain and noise are found in simulations that know them, and nothing is made up where the data do not tell."""

import pytest
import torch
from cases import random

import deconv_cli
from deconv_cli.diagnostics.noise_level import estimate_gain, estimate_noise
from deconv_cli.errors import ShapeError


def blurred_scene(size=160):
    patches = 10 + 90 * torch.rand(12, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x = patches.repeat_interleave(size // 10, 0).repeat_interleave(size // 10, 1)[None]
    return deconv_cli.forward(x, torch.ones(7, 7, dtype=torch.float64) / 49, padding="valid")


@pytest.mark.parametrize("gain", [20.0, 1.0, 0.05])
def test_the_gain_of_counts_is_found(gain):
    y = blurred_scene()
    counts = torch.poisson(y / gain, generator=torch.Generator().manual_seed(1))
    assert estimate_gain(gain * counts) == pytest.approx(gain, rel=0.15)


def test_noise_that_does_not_grow_with_brightness_has_no_gain():
    y = blurred_scene()
    assert estimate_gain(y + 2 * random(tuple(y.shape))) is None


@pytest.mark.parametrize(
    "y",
    [
        torch.full((1, 90, 90), 5.0),
        torch.zeros(1, 90, 90),
        5 + random((1, 10, 10)).abs(),
        torch.poisson(torch.full((1, 90, 90), 50.0), generator=torch.Generator().manual_seed(1)),
    ],
    ids=["flat", "black", "small", "one-brightness"],
)
def test_nothing_is_made_up(y):
    assert estimate_gain(y) is None


@pytest.mark.parametrize("sigma", [0.3, 3.0, 30.0])
def test_the_noise_is_found_over_a_scene(sigma):
    y = blurred_scene()
    assert estimate_noise(y + sigma * random(tuple(y.shape))) == pytest.approx(sigma, rel=0.1)


def test_noise_of_less_than_three_pixels_is_refused():
    with pytest.raises(ShapeError, match="at least 3×3"):
        estimate_noise(torch.zeros(1, 2, 9))
