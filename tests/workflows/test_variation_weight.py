"""The weight of the total variation from data alone: it follows the noise and the edges of the scene."""

from __future__ import annotations

import pytest
import torch
from cases import random

import deconv_cli
from deconv_cli.diagnostics.noise_spectrum import draw_noise
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.sources.formula import make_kernel
from deconv_cli.noise_model import FREQUENCIES, NoiseModel
from deconv_cli.workflows.noise_of_data import find_noise_of_channels

SIZE = (40, 44)
BLUR = deconv_cli.make_kernel("gaussian:1")


def seen(noise):
    scene = torch.zeros(1, *SIZE, dtype=torch.float64)
    scene[:, 8:30, 10:25], scene[:, 20:, 30:] = 5.0, -3.0
    y = deconv_cli.forward(scene, BLUR, boundary="reflect")
    return y + noise * random(tuple(y.shape), seed=6)


def weight_of(y, **options):
    given = {"boundary": "reflect", "prior": "tv", "tolerance": 1e-2} | options
    return deconv_cli.invert(y, BLUR, **given).solution.weight


def test_the_weight_is_in_the_unit_of_the_samples():
    y = seen(0.2)
    assert weight_of(10 * y) == pytest.approx(10 * weight_of(y), rel=1e-3)


def test_the_weight_is_that_of_exponential_edges():
    y = seen(0.2)
    options = {"boundary": "reflect", "lam": "auto", "penalty": "gradient", "noise": NoiseModel(0.2)}
    x = deconv_cli.invert(y, BLUR, **options).image
    edges = torch.stack([x.diff(dim=axis, append=x.narrow(axis, -1, 1)) for axis in (1, 2)]).norm(dim=0)
    assert weight_of(y, noise=NoiseModel(0.2)) == pytest.approx(0.2**2 / (float(edges.mean()) + 0.2), rel=0.02)


def test_colored_noise_costs_little_against_the_best_weight():
    """Noise after compression or smoothing; treated as white, it is underestimated, as small as its fine detail."""
    scene = torch.zeros(1, 64, 64, dtype=torch.float64)
    scene[:, 12:48, 16:32], scene[:, 32:, 48:] = 5.0, -3.0
    y = deconv_cli.forward(scene, BLUR, boundary="reflect")
    smoothed = NoiseModel(0.6, tuple(2 / (1 + (f / 0.25) ** 6) + 0.02 for f in FREQUENCIES))
    y = y + 0.6 * draw_noise(smoothed, y, seed=3)

    def decibels(**options):
        x = deconv_cli.invert(y, BLUR, boundary="reflect", prior="tv", tolerance=1e-2, **options).image
        return 10 * float((x - scene).square().mean().log10())

    best = min(decibels(weight=weight) for weight in (0.4, 0.6, 0.9))
    assert decibels(noise=smoothed) < best + 0.3
    assert decibels(noise="auto") < best + 1.2
    assert decibels(noise="white") > best + 10


def test_a_flat_scene_gets_the_weight_of_its_noise():
    y = 0.2 * random((1, *SIZE), seed=3)
    assert weight_of(y, noise=NoiseModel(0.2)) == pytest.approx(0.2, rel=0.1)


SMOOTHED = NoiseModel(2.0, tuple(2 / (1 + (f / 0.25) ** 6) + 0.02 for f in FREQUENCIES))
KERNEL = Kernel.from_tensor(make_kernel("gaussian:1.8").double())


def channels(*kinds):
    like = torch.zeros(1, 160, 160, dtype=torch.float64)
    return torch.cat([kind.sigma * draw_noise(kind, like, seed) for seed, kind in enumerate(kinds)])


def test_noise_that_is_colored_in_one_channel_is_so_in_all():
    found = find_noise_of_channels(channels(SMOOTHED, NoiseModel(2.0)).split(1), [KERNEL])
    assert [model.is_white for model in found] == [False, False]
    assert 0.7 < found[1].spectrum[3] / found[1].spectrum[10] < 1.4


def test_white_noise_is_left_white_in_all_channels():
    found = find_noise_of_channels(channels(NoiseModel(2.0), NoiseModel(1.0)).split(1), [KERNEL])
    assert found == (NoiseModel(), NoiseModel())
