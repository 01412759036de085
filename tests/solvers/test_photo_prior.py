"""The prior for photographs: its denoiser knows no unit, and its estimates are nearer to the truth than others."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import deconv_cli
from deconv_cli.diagnostics.predicted_error import smoothed
from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.noise_model import NoiseModel
from deconv_cli.report.reconstruction_record import describe_reconstruction
from deconv_cli.saved_files import WEIGHTS, load_denoiser
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.solution import Status
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.workflows.estimators import CURVED, EVEN, find_noise_levels

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

    def in_tiles(x, levels, origin=(0, 0)):
        cleaned = torch.empty_like(x)
        for tile in denoiser.tiles(x.shape[-2:], origin):
            cleaned[tile.inner] = denoiser.in_tile(x, levels, tile)
        return cleaned

    assert torch.allclose(in_tiles(x, levels), whole, atol=1e-5)
    top, left = 3, 13  # the network does not treat all places alike
    part = in_tiles(x[..., top:, left:], levels[..., top:, left:], (top, left))
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


def test_the_sum_of_the_taps_does_not_matter():
    taps, options = deconv_cli.make_kernel("disk:2").float(), {"defaults": "picture", "prior": "photo"}
    y, _ = blurred(scene(3, (64, 64)), taps)
    one, many = (deconv_cli.invert(n * y, n * taps, **options).image for n in (1, 24))
    assert torch.allclose(one, many, atol=1e-3)


@pytest.mark.parametrize("n_channels", [1, 3])
def test_pictures_of_a_batch_do_not_know_of_one_another(n_channels):
    taps, options = deconv_cli.make_kernel("disk:2").float(), {"defaults": "picture", "prior": "photo"}
    pair = [blurred(scene(n_channels, (64, 64)), taps, noise)[0] for noise in (0.002, 0.05)]
    together = deconv_cli.invert(torch.stack(pair), taps, **options).image
    for one, found in zip(pair, together, strict=True):
        assert torch.allclose(deconv_cli.invert(one, taps, **options).image, found, atol=2e-3)


def test_derivatives_ask_for_the_quadratic_prior():
    y = (255 * scene(1, (32, 32))).requires_grad_()
    options = {"defaults": "picture", "tone_curve": deconv_cli.ToneCurve.srgb(255)}
    found = deconv_cli.invert(y, torch.ones(3, 3) / 9, **options)
    assert found.settings.objective == "quadratic"
    found.image.sum().backward()
    assert y.grad is not None


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
        ({"prior": "photo", "stride": 2}, "prior photo does not work on layers"),
        ({"strength": 2.0, "prior": "tv"}, 'strength is for prior="photo"'),
        ({"prior": "photo", "strength": 0.0}, "strength must be a positive number"),
        ({"prior": "photo", "lam": 0.1}, "prior photo has no λ"),
        ({"prior": "photo", "kernel": torch.tensor([[1.0, -1.0]])}, "prior photo undoes blurs"),
        ({"prior": "photo", "y": torch.rand(1, 6, 8, 8), "kernel": torch.ones(3, 3, 3), "dimensions": 3}, "two axes"),
    ],
)
def test_what_makes_no_sense_is_refused(options, reason):
    with pytest.raises(UsageError, match=reason):
        deconv_cli.invert(**{"y": scene(1, (24, 24)), "kernel": torch.ones(3, 3) / 9} | options)


@pytest.mark.parametrize(
    ("options", "prior"),
    [
        ({}, "photo"),
        ({"strength": 2.0}, "photo"),
        ({"noise_sigma": 2.0}, "photo"),
        ({"prior": "quadratic"}, "quadratic"),
        ({"lam": 0.01}, "quadratic"),
        ({"lam": "auto"}, "quadratic"),
        ({"penalty": "laplacian"}, "quadratic"),
        ({"method": "richardson-lucy"}, "richardson-lucy"),
        ({"nonnegative": True}, "nonnegative"),
        ({"light": "stored"}, "quadratic"),
        *(({"tone_curve": curve}, "quadratic") for curve in (None, deconv_cli.ToneCurve.srgb(65535))),
        ({"kernel": torch.tensor([[1.0, -1.0]])}, "quadratic"),
        ({"defaults": "tensor", "light": "linear"}, "quadratic"),
        ({"stride": 2, "input_size": (64, 64), "lam": 1e-3}, "quadratic"),
    ],
)
def test_pictures_of_8_bits_with_a_tone_curve_are_photographs_unless_a_setting_says_otherwise(options, prior):
    curve = deconv_cli.ToneCurve.srgb(255)
    given = {"defaults": "picture", "kernel": torch.ones(3, 3) / 9, "tone_curve": curve} | options
    found = deconv_cli.invert((255 * scene(3, (32, 32))).byte(), **given)
    assert found.settings.objective == prior
    is_noted = any("restored as a photograph" in note for note in found.notes)
    assert "may be invented" not in str(found.notes)  # the prior's own note covers it
    assert is_noted == (prior == "photo" and "strength" not in options)
    is_overruled = any("looks like a photograph" in note for note in found.notes)
    assert is_overruled == (options in ({"lam": 0.01}, {"lam": "auto"}, {"penalty": "laplacian"}))


def test_a_picture_too_small_for_its_noise_is_restored():
    found = deconv_cli.invert(torch.full((3, 3, 3), 7.0), torch.ones(3, 3) / 9, defaults="picture", prior="photo")
    assert torch.allclose(found.image, torch.full((3, 3, 3), 7.0), atol=1.0)


@pytest.mark.parametrize("n_models", [1, 3])
def test_noise_that_is_given_is_believed(n_models):
    given, taps = NoiseModel(sigma=40.0), torch.ones(3, 3) / 9
    y, _ = blurred(255 * scene(size=(40, 44)), taps, noise=2.0)
    noise = given if n_models == 1 else (given,) * n_models
    found = deconv_cli.invert(y, taps, defaults="picture", prior="photo", light="stored", noise=noise)
    assert found.solution.noise_levels == pytest.approx([40.0 * EVEN] * 3)
    assert found.noise == (given,) * n_models
    with pytest.raises(UsageError, match="2 channels, but the data have 3"):
        deconv_cli.invert(y, taps, defaults="picture", prior="photo", light="stored", noise=(given, given))


def test_what_jpeg_rounded_away_counts_as_noise():
    """A short motion in a coarse JPEG: the data show a part of the error alone."""
    taps, curve = deconv_cli.make_kernel("motion:9@70").float(), deconv_cli.ToneCurve.srgb(255)
    blurred = deconv_cli.forward(curve.to_light(255 * scene()), taps, padding="valid")
    noisy = curve.to_stored(blurred) + torch.randn(blurred.shape, generator=torch.Generator().manual_seed(0))
    file = io.BytesIO()
    Image.fromarray(noisy.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=75)
    stored = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float()
    settings = ResolvedSettings(prior="photo", boundary="unknown")
    found = find_noise_levels(curve.to_light(stored), Kernel.of_any(taps), settings, curve)[0].noise_levels
    real = (stored - curve.to_stored(blurred)).square().mean(dim=(1, 2)).sqrt()
    estimated = torch.tensor(found) / CURVED
    assert ((estimated > 0.75 * real) & (estimated < 1.4 * real)).all()


CURVE = ToneCurve.srgb(255.0)


def stored_picture(taps, noise, size=(150, 130)):
    """A part of a photograph of 8 bits, blurred in light, and the truth."""
    light, truth = blurred(CURVE.to_light(255 * scene(size=size)), taps, noise=0.0)
    drawn = noise * torch.randn(light.shape, generator=torch.Generator().manual_seed(1))
    return (CURVE.to_stored(light) + drawn).round().clamp(0, 255).byte(), CURVE.to_stored(truth)


def test_the_error_to_be_expected_is_near_the_real_one_in_stored_values():
    taps = deconv_cli.make_kernel("disk:3")
    y, truth = stored_picture(taps, noise=2.0)
    result = deconv_cli.invert(y, taps, prior="photo", defaults="picture", tone_curve=CURVE, truth=truth)
    found = result.predicted_error
    assert found.actual_root_mean_square == pytest.approx(error(result.image, truth), rel=1e-3)
    for band in (found, found.bands[0], found.bands[-1]):
        real, expected = (
            (band.actual_root_mean_square, band.root_mean_square) if band is found else (band.actual, band.predicted)
        )
        assert real / 1.7 < expected < 1.7 * real  # detail as fine as here has more error than expected
    # Where more is wrong, more is expected.
    squares = [smoothed(part.square(), 2).sqrt().flatten() for part in (found.map, result.image - truth)]
    assert torch.corrcoef(torch.stack(squares))[0, 1] > 0.5
    assert found.trusted_share > 0.5
    assert found.trusted_depth <= max(taps.shape)  # further in the outside adds nothing


def test_the_level_of_the_noise_is_reported():
    taps = deconv_cli.make_kernel("disk:3")
    y, _ = stored_picture(taps, noise=2.0, size=(80, 70))
    result = deconv_cli.invert(y, taps, prior="photo", defaults="picture", tone_curve=CURVE)
    told = describe_reconstruction(result)["noise_sigma_in_samples"]
    assert told == list(result.solution.noise_levels)
    assert all(1 < level / CURVED < 3 for level in told)


def test_a_wrong_kernel_is_doubted_and_no_minimum_is_claimed():
    y, _ = stored_picture(deconv_cli.make_kernel("motion:15@70"), noise=2.0, size=(220, 180))
    wrong = deconv_cli.make_kernel("motion:15@110")
    result = deconv_cli.invert(y, wrong, prior="photo", defaults="picture", tone_curve=CURVE)
    found = "with the quadratic prior, the data contain frequencies that this kernel nearly removes"
    assert found in str(result.doubts)
    assert "larger λ" not in str(result.doubts)
    assert result.solution.status is Status.FIXED_STEPS
    assert 1 < result.finest < 12
    assert result.prior_sentence.startswith("a denoiser that learned from photographs; detail finer than about ")
    assert result.prior_sentence.endswith(f" {result.finest:.1f} pixels is plausible, not measured")


def test_the_weights_are_those_of_the_model_card():
    card = (Path(__file__).parents[2] / "training/README.md").read_text(encoding="utf-8")
    content = WEIGHTS.read_bytes()
    assert hashlib.sha256(content).hexdigest() in card
    assert len(content) <= 1_000_000


def test_a_dark_color_is_denoised_alone(monkeypatch):
    truth = scene(size=(64, 70))
    truth[2] *= 0.01
    curve = ToneCurve.srgb(255.0)
    y, truth = blurred(255 * truth, taps := deconv_cli.make_kernel("disk:3"), noise=0)
    stored = curve.to_stored(y) + 2 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    options = {"defaults": "picture", "prior": "photo", "tone_curve": curve}

    def error_of_blue():
        found = deconv_cli.invert(stored.round().clamp(0, 255).byte(), taps, **options)
        return error(found.image[2].clamp(0, 255), curve.to_stored(truth)[2])

    alone = error_of_blue()
    monkeypatch.setattr("deconv_cli.solvers.photo_prior.DARK", 0.0)
    assert alone < 0.5 * error_of_blue()
