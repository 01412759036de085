"""The kind of noise that the channels of a picture have."""

from __future__ import annotations

import torch

from deconv_cli.diagnostics.noise_spectrum import draw_noise
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.sources.formula import make_kernel
from deconv_cli.noise_model import FREQUENCIES, NoiseModel
from deconv_cli.workflows.lambda_of_data import find_noise_of_channels

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
