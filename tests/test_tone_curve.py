"""Curves between stored samples and light: they are what they are called, and nothing is lost on the way and back."""

import pytest
import torch

from deconv_cli import ToneCurve, UsageError
from deconv_cli.tone_curve import limits_of, white_of

BITS = {8: 255.0, 16: 65535.0}


def curves(white):
    values = torch.linspace(0, 1, 256, dtype=torch.float64)
    per_channel = ToneCurve(torch.stack([values**2.2, values**1.8, values]), white)
    return {"sRGB": ToneCurve.srgb(white), "gamma 2.2": ToneCurve.gamma(2.2, white), "one a channel": per_channel}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", ["sRGB", "gamma 2.2", "one a channel"])
def test_every_stored_value_comes_back(name, bits, dtype):
    curve = curves(BITS[bits])[name]
    stored = torch.arange(2**bits, dtype=dtype).expand(3, 1, -1)
    light = curve.to_light(stored)
    assert (light.diff(dim=-1) > 0).all()
    assert (light[..., 0] == 0).all()
    assert torch.allclose(light[..., -1], torch.tensor(BITS[bits], dtype=dtype), rtol=1e-6)
    assert (curve.to_stored(light) - stored).abs().max() < 0.05


def test_srgb_is_that_of_the_standard():
    stored = torch.arange(0, 65536, 7, dtype=torch.float64)[None, None]
    values = stored / 65535
    expected = torch.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    assert (ToneCurve.srgb(65535).to_light(stored) / 65535 - expected).abs().max() < 1e-7
    assert ToneCurve.srgb(255).to_light(torch.full((1, 1, 1), 128.0)).item() == pytest.approx(55.04, abs=0.01)


@pytest.mark.parametrize("name", ["sRGB", "gamma 2.2", "one a channel"])
def test_what_overshoots_is_not_lost(name):
    curve = curves(255.0)[name]
    light = torch.tensor([-300.0, -1.0, -1e-3, 0.0, 254.0, 256.0, 600.0], dtype=torch.float64).expand(3, 1, -1)
    stored = curve.to_stored(light)
    assert (stored.diff(dim=-1) > 0).all()
    assert torch.allclose(curve.to_light(stored), light, atol=1e-9)
    assert (stored[..., :3] < 0).all()
    assert (stored[..., 5:] > 255).all()
    assert torch.equal(curve.to_stored(-light), -stored)


@pytest.mark.parametrize("direction", ["to_light", "to_stored"])
def test_both_directions_are_differentiable(direction):
    convert = getattr(ToneCurve.srgb(255), direction)
    samples = torch.tensor([-20.3, -0.01, 0.2, 3.4, 100.7, 254.6, 280.1], dtype=torch.float64)[None, None]
    assert torch.autograd.gradcheck(convert, samples.requires_grad_(True), eps=1e-5, atol=1e-4)


def test_slopes_are_how_far_light_moves():
    curve = curves(255.0)["one a channel"]
    stored = torch.tensor([40.0, 128.0, 220.0]).expand(2, 3, 1, 3)
    moved = (curve.to_light(stored.double() + 0.01) - curve.to_light(stored.double() - 0.01)) / 0.02
    expected = moved.square().mean(dim=(0, 2, 3)).sqrt()
    assert curve.slopes(stored.int()) == pytest.approx(expected.tolist(), rel=1e-2)


@pytest.mark.parametrize(
    "table",
    [
        torch.linspace(0, 1, 9),
        torch.zeros(1, 9),
        torch.linspace(1, 0, 9)[None],
        torch.linspace(0.1, 1, 9)[None],
        torch.linspace(0, 2, 9)[None],
        torch.zeros(0, 9),
        torch.full((1, 9), float("nan")),
    ],
)
def test_what_is_no_curve_is_refused(table):
    with pytest.raises(UsageError, match="light must"):
        ToneCurve(table, 255)


def test_white_and_gamma_are_checked():
    with pytest.raises(UsageError, match="white must be a positive number"):
        ToneCurve.srgb(0)
    for exponent in (0.0, -2.2, float("nan"), 50.0):
        with pytest.raises(UsageError, match="gamma must be a number between"):
            ToneCurve.gamma(exponent, 255)


COUNTS = torch.tensor([[[0, 70_000], [65_535, 3]]], dtype=torch.int32)
FULL = COUNTS.clamp_max(65_535)


@pytest.mark.parametrize(
    ("samples", "stored", "white", "limits"),
    [
        (FULL.clamp_max(255).byte(), None, 255, (0, 255)),
        (FULL.clamp_max(1).byte(), "bool", None, None),
        (FULL, "uint16", 65_535, (0, 65_535)),
        (FULL.clamp_max(9), "uint16", 65_535, (0, 65_535)),
        (FULL, "int32", None, (-(2**31), 2**31 - 1)),
        (FULL, None, 65_535, (0, 65_535)),
        (COUNTS, None, None, (-(2**31), 2**31 - 1)),
        (FULL - 1, None, None, (-(2**31), 2**31 - 1)),
        (FULL[:, :0], None, None, (-(2**31), 2**31 - 1)),
        (COUNTS.long(), "uint32", None, (0, 2**32 - 1)),
        (FULL.float(), None, None, None),
    ],
)
def test_white_and_limits(samples, stored, white, limits):
    assert white_of(samples, stored) == white
    assert limits_of(samples, stored) == limits
