"""What lossy compression takes away: the part of a coefficient that a quantizer leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deconv_cli.diagnostics.image_model import ImageModel
from deconv_cli.diagnostics.lost_signal import is_lossy, part_left, share_left, without_lost
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


@pytest.mark.parametrize("step", [0.3, 1.5, 4.0, 8.0])
def test_a_quantizer_leaves_that_part_of_laplacian_coefficients(step):
    uniform = torch.rand(10**6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    drawn = -uniform.sign() * (1 - 2 * uniform.abs()).log()
    power = drawn.square().mean()
    found = (drawn * (drawn / step).round() * step).mean() / power
    assert float(part_left(step**2 / 12 / power)) == pytest.approx(float(found), abs=0.01)


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


@pytest.mark.parametrize("ratio", [0.0, 1e-12, 1e12])
def test_extremes_have_an_answer(ratio):
    assert float(part_left(torch.tensor(ratio, dtype=torch.float64))) == pytest.approx(float(ratio < 1), abs=1e-6)
