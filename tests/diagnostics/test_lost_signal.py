"""What lossy compression took away: the share of it, and data that have as much power as they should."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deconv_cli.diagnostics.image_model import ImageModel
from deconv_cli.diagnostics.lost_signal import draw_remaining_noise, is_lossy, lost_share, without_lost
from deconv_cli.noise_model import FREQUENCIES, NoiseModel

TORUS = (48, 40)
TAPS = torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64)
COLORED = NoiseModel(None, tuple(1 + 4 * f for f in FREQUENCIES))
MODEL = ImageModel(
    torch.tensor([3.0, 0.3, 0.0, 0.0, 0.0, -1.2], dtype=torch.float64),
    torch.eye(1, dtype=torch.float64),
    sigma=0.6,
    noise=COLORED,
)


def power_of(images):
    return torch.fft.rfft2(images, norm="ortho").abs().square().mean(dim=(0, 1))


def test_white_noise_and_mixed_channels_lose_nothing():
    assert is_lossy(MODEL)
    assert not is_lossy(replace(MODEL, noise=NoiseModel()))
    assert not is_lossy(replace(MODEL, channels=torch.eye(3)))


def test_all_is_lost_where_noise_exceeds_the_data_and_little_where_it_does_not():
    share = lost_share(MODEL, TAPS, TORUS)
    assert share[0, 1] < 0.01
    assert share[0, 13] == 1  # a third of a cycle a pixel, which the kernel hides
    assert float(share.min()) >= 0


def test_data_and_noise_have_together_what_is_left_of_the_data():
    """A quantizer's output has the power of its input less that of its error: GS − N."""
    drawn = MODEL.draw(400, TORUS, 3, torch.float64)
    blurred = torch.fft.irfft2(torch.fft.rfft2(without_lost(drawn, MODEL, TAPS)) * _gain().sqrt(), s=TORUS)
    noise = MODEL.sigma * draw_remaining_noise(MODEL, TAPS, drawn, 4)
    before = _gain() * MODEL.power(TORUS)
    expected = before * (1 - lost_share(MODEL, TAPS, TORUS))
    seen = expected > 0.02 * MODEL.sigma**2
    ratio = (power_of(blurred + noise) / expected)[seen]
    assert float(ratio.mean()) == pytest.approx(1, abs=0.02)
    assert float(ratio.std()) < 0.15


def _gain():
    rows, columns = torch.fft.fftfreq(TORUS[0])[:, None].double(), torch.fft.rfftfreq(TORUS[1]).double()
    line = [(1 + 2 * torch.cos(2 * torch.pi * f)) / 3 for f in (rows, columns)]
    return (line[0] * line[1]).square()
