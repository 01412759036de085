"""The prior for photographs: its denoiser knows no unit, and its estimates are nearer to the truth than others."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import deconv_cli
from deconv_cli.errors import UsageError
from deconv_cli.saved_denoiser import WEIGHTS, load_denoiser

SAMPLES = Path(__file__).parents[2] / "sample_images"


def scene(n_channels=3, size=(220, 180)):
    """A part of a photograph that the denoiser has not learned from, from 0 to 1."""
    picture = Image.open(SAMPLES / "astronaut.png").convert("RGB" if n_channels == 3 else "L")
    values = torch.from_numpy(np.asarray(picture).reshape(picture.height, picture.width, -1).copy()).permute(2, 0, 1)
    return values[:, 20 : 20 + size[0], 70 : 70 + size[1]].float() / 255


def blurred(truth, taps, noise=0.005):
    y = deconv_cli.forward(truth, taps, padding="valid")
    y = y + noise * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    top, left = ((k - 1) // 2 for k in taps.shape)
    return y, truth[:, top : top + y.shape[1], left : left + y.shape[2]]


def error(estimate, truth):
    return float((estimate - truth).square().mean().sqrt())


def test_the_denoiser_knows_no_unit():
    x, levels = scene()[None], torch.full((1, 2, 220, 180), 0.05)
    denoiser, _ = load_denoiser(x.device)
    assert torch.allclose(1000 * denoiser(x, levels), denoiser(1000 * x, 1000 * levels), rtol=1e-3, atol=0.05)


def test_tiles_give_what_the_whole_gives(monkeypatch):
    x, levels = scene(size=(150, 170))[None], 0.1 * torch.rand(1, 2, 150, 170)
    denoiser, _ = load_denoiser(x.device)
    whole = denoiser(x, levels)
    monkeypatch.setattr("deconv_cli.solvers.denoiser.TILE", 64)
    assert torch.allclose(denoiser.in_tiles(x, levels), whole, atol=1e-5)
    top, left = 3, 13  # the network does not treat all places alike
    part = denoiser.in_tiles(x[..., top:, left:], levels[..., top:, left:], (top, left))
    deep = (..., slice(denoiser.reach, None), slice(denoiser.reach, None))
    assert torch.allclose(part[deep], whole[..., top:, left:][deep], atol=1e-5)


def test_light_beyond_white_is_estimated():
    truth = scene(size=(100, 90))
    truth[:, 30:36, 20:70] = 3.0  # a lamp
    taps = deconv_cli.make_kernel("disk:3")
    y, truth = blurred(truth, taps)
    stored, options = (255 * y).round().clamp(0, 255).byte(), {"defaults": "picture", "light": "stored"}
    found = deconv_cli.invert(stored, taps, prior="photo", **options)
    assert found.has_bounds
    ignored = deconv_cli.invert(stored, taps, prior="photo", noise="white", **options)
    assert not ignored.has_bounds
    assert error(found.image / 255, truth) < 0.85 * error(ignored.image / 255, truth)


@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("formula", ["disk:3", "motion:9@30"])
def test_photographs_come_nearer_to_the_truth_than_by_other_priors(formula, n_channels):
    taps = deconv_cli.make_kernel(formula)
    y, truth = blurred(scene(n_channels), taps)
    options = {"defaults": "picture", "light": "stored"}
    photo = deconv_cli.invert(y, taps, prior="photo", **options)
    others = [deconv_cli.invert(y, taps, prior=prior, **options).image for prior in ("quadratic", "tv")]
    assert photo.is_trusted
    assert error(photo.image, truth) < 0.95 * min(error(other, truth) for other in others)


def test_strength_is_smoother_above_one():
    taps = deconv_cli.make_kernel("disk:3")
    y, _ = blurred(scene(), taps)
    found = [
        deconv_cli.invert(y, taps, prior="photo", strength=s, defaults="picture", light="stored").image
        for s in (0.5, 1.0, 2.0)
    ]
    detail = [float(image.diff(dim=-1).abs().sum()) for image in found]
    assert detail[0] > 1.05 * detail[1] > 1.05 * 1.05 * detail[2]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"prior": "photo", "stride": 2}, "prior photo knows no layers"),
        ({"strength": 2.0}, 'strength is that of prior="photo"'),
        ({"prior": "photo", "strength": 0.0}, "strength must be a positive number"),
        ({"prior": "photo", "lam": 0.1}, "prior photo has no λ"),
    ],
)
def test_what_makes_no_sense_is_refused(options, reason):
    with pytest.raises(UsageError, match=reason):
        deconv_cli.invert(scene(1, (24, 24)), torch.ones(3, 3) / 9, **options)


def test_stacks_and_signals_are_refused():
    with pytest.raises(UsageError, match="which have two axes"):
        deconv_cli.invert(torch.rand(1, 6, 8, 8), torch.ones(3, 3, 3) / 27, prior="photo", dimensions=3)


def test_the_weights_are_those_of_the_model_card():
    card = (Path(__file__).parents[2] / "training/README.md").read_text(encoding="utf-8")
    content = WEIGHTS.read_bytes()
    assert hashlib.sha256(content).hexdigest() in card
    assert len(content) <= 1_000_000
