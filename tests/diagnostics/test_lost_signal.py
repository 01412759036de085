"""What lossy compression takes away of drawn images."""

from __future__ import annotations

from dataclasses import replace

import torch

from deconv_cli.diagnostics.image_model import ImageModel
from deconv_cli.diagnostics.lost_signal import is_lossy, share_left, without_lost
from deconv_cli.noise_model import FREQUENCIES, NoiseModel

TORUS = (48, 40)
TAPS = torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64)
COLORED = NoiseModel(None, tuple(2 if f < 0.25 else 0.5 for f in FREQUENCIES))
MODEL = ImageModel(
    torch.tensor([3.0, 0.3, 0.0, 0.0, 0.0, -1.2], dtype=torch.float64),
    torch.eye(1, dtype=torch.float64),
    sigma=0.6,
    noise=COLORED,
)


def test_white_noise_and_mixed_channels_lose_nothing():
    assert is_lossy(MODEL)
    assert not is_lossy(replace(MODEL, noise=NoiseModel()))
    assert not is_lossy(replace(MODEL, channels=torch.eye(3)))


def test_strong_detail_is_left_and_weak_detail_is_lost():
    share = share_left(MODEL, TAPS, TORUS)
    assert share[0, 1] > 0.99
    assert share[0, 13] < share[0, 5] < share[0, 1]  # the kernel hides a third of a cycle a pixel
    assert float(share.min()) >= 0
    drawn = MODEL.draw(400, TORUS, 3, torch.float64)
    kept, before = (
        torch.fft.rfft2(x).abs().square().mean(dim=(0, 1)) for x in (without_lost(drawn, MODEL, TAPS), drawn)
    )
    torch.testing.assert_close((kept / before)[1:, 1:], share.square()[1:, 1:])
