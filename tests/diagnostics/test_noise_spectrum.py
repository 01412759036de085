"""Colored noise in blurred pictures: its spectrum is found, white noise is left white, and λ follows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from deconv_cli import invert
from deconv_cli.diagnostics.lambda_choice import choose_lambda
from deconv_cli.diagnostics.noise_spectrum import (
    SpectrumBasis,
    draw_noise,
    fit_noise_spectrum,
    interpolated,
    passed_sigma,
)
from deconv_cli.diagnostics.periodic_extension import PeriodicExtension
from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.sources.formula import make_kernel
from deconv_cli.noise_model import FREQUENCIES, WHITE, NoiseModel
from deconv_cli.tone_curve import ToneCurve

SIZE = 160
SMOOTHED = NoiseModel(2.0, tuple(2 / (1 + (f / 0.25) ** 6) + 0.02 for f in FREQUENCIES))
KERNELS = {name: make_kernel(name) for name in ("gaussian:1.8", "disk:4")}


def like(*shape):
    return torch.zeros(*shape, dtype=torch.float64)


@pytest.fixture(scope="module")
def scene():
    """A scene with the spectrum of photographs, of brightness 100 ± 40."""
    n = SIZE + 32
    rows, columns = torch.fft.fftfreq(n)[:, None], torch.fft.rfftfreq(n)
    radius = (rows.square() + columns.square()).sqrt()
    radius[0, 0] = math.inf
    white = torch.randn(n, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    image = torch.fft.irfft2(torch.fft.rfft2(white) / radius**1.2, s=(n, n))
    return 100 + 40 * image / image.std()


def blurred(scene, taps, model, seed=5):
    taps = taps.double()
    y = torch.nn.functional.conv2d(scene[None, None], taps[None, None])[0, 0, :SIZE, :SIZE]
    return (y + model.sigma * draw_noise(model, like(1, SIZE, SIZE), seed)[0])[None], taps


def noise_of(y, taps):
    return fit_noise_spectrum(y, SpectrumBasis.of(taps, tuple(y.shape[2:])))


@pytest.mark.parametrize("name", KERNELS)
def test_the_spectrum_of_smoothed_noise_is_found(scene, name):
    y, taps = blurred(scene, KERNELS[name], SMOOTHED)
    found = noise_of(y[None], taps[None, None])
    power = interpolated(SMOOTHED.spectrum, (SIZE, SIZE), y)
    true = torch.fft.irfft2(power + 0j, s=(SIZE, SIZE))[..., 0, 0].sqrt() * SMOOTHED.sigma
    assert found.sigma == pytest.approx(float(true), rel=0.2)  # the scene hides a part
    power = [found.sigma**2 * p for p in found.spectrum[3:11]]
    expected = [SMOOTHED.sigma**2 * p for p in SMOOTHED.spectrum[3:11]]
    assert power == pytest.approx(expected, rel=0.4)
    assert "less power in fine detail" in found.sentence


@pytest.mark.parametrize("name", KERNELS)
def test_noise_goes_on_at_its_level_where_the_scene_hides_it(scene, name):
    """Rounded coefficients err alike where they are strong, and by at most their own size where they are weak."""
    rounded = NoiseModel(2.0, tuple(min(1.0, math.exp(-8 * (f - 0.22))) for f in FREQUENCIES))
    y, taps = blurred(scene, KERNELS[name], rounded)
    found = noise_of(y[None], taps[None, None])
    lowest = found.sigma**2 * found.spectrum[0] / (rounded.sigma**2 * rounded.spectrum[0])
    assert lowest == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("size", [64, 96])
def test_what_leaks_of_a_scene_without_noise_is_no_noise(scene, size):
    """A kernel that hides frequencies leaves less there than the window spreads to them."""
    y, taps = blurred(scene, KERNELS["gaussian:1.8"], NoiseModel(0.0))
    assert noise_of(y[None, ..., :size, :size].float(), taps[None, None].float()).is_white


@pytest.mark.parametrize("sigma", [0.3, 5.0])
@pytest.mark.parametrize("name", KERNELS)
def test_white_noise_is_left_white(scene, name, sigma):
    y, taps = blurred(scene, KERNELS[name], NoiseModel(sigma))
    assert noise_of(y[None], taps[None, None]) == WHITE


def test_pictures_that_are_too_small_to_tell_are_taken_for_white():
    assert noise_of(torch.rand(1, 1, 5, 6), torch.ones(1, 1, 1, 1)) == WHITE


@pytest.mark.parametrize("level", [0.0, 7.0])
def test_pictures_without_noise_or_without_a_scene_have_an_answer(level):
    assert noise_of(torch.full((1, 1, 64, 64), level), torch.ones(1, 1, 3, 3) / 9) == WHITE
    ramp = torch.arange(64.0).expand(1, 1, 64, 64) + level
    assert noise_of(ramp, torch.ones(1, 1, 1, 1)).sigma is None


def test_noise_is_drawn_with_the_spectrum_of_its_model():
    drawn = draw_noise(SMOOTHED, like(64, 1, 48, 40), seed=1)
    power = torch.fft.rfft2(drawn, norm="ortho").abs().square().mean(dim=(0, 1))
    expected = interpolated(SMOOTHED.spectrum, (48, 40), drawn)
    assert ((power / expected)[:, 1:-1].log().mean()).abs() < 0.05
    assert (power / expected).std() < 0.3


def test_a_kernel_passes_more_of_smooth_noise():
    taps, y = KERNELS["gaussian:1.8"][None, None], like(1, 48, 40)
    gain = torch.fft.fft2(taps[0, 0], s=(48, 40)).abs()
    half = interpolated(SMOOTHED.spectrum, (48, 40), y)
    power = torch.fft.fft2(torch.fft.irfft2(half + 0j, s=(48, 40))).real
    expected = SMOOTHED.sigma * ((power * gain).sum() / gain.sum()).sqrt()
    assert passed_sigma(SMOOTHED, taps, y) == pytest.approx(float(expected))
    assert passed_sigma(NoiseModel(2.0), taps, y) == 2.0


@pytest.mark.parametrize("name", KERNELS)
def test_the_choice_of_lambda_sees_through_smoothed_noise(scene, name):
    """Judged by the λ that is chosen where the same amount of noise is white."""
    taps = KERNELS[name].double()
    plain = replace(SMOOTHED, spectrum=())
    kernel = Kernel.from_tensor(taps)
    choices = {}
    for label, noise, model in (("white", plain, None), ("unknown", SMOOTHED, None), ("known", SMOOTHED, SMOOTHED)):
        y, _ = blurred(scene, taps, noise)
        continuation = PeriodicExtension(kernel, (SIZE, SIZE), boundary="unknown", penalty="gradient", noise=model)
        choices[label] = choose_lambda(continuation, y).lam
    assert 0.5 < choices["known"] / choices["white"] < 4
    assert choices["unknown"] < 0.1 * choices["known"]


@pytest.mark.parametrize(
    ("white", "lambda_rule", "taken"), [(255, None, "whiteness"), (255, "gcv", "gcv"), (65535, None, "gcv")]
)
def test_where_cross_validation_fails_on_rounded_light_the_whitest_residual_decides(scene, white, lambda_rule, taken):
    """The noise is smoothed, but treated as white; judged by the error of the blurred picture itself."""
    smoothed = NoiseModel(2.0, tuple(2 / (1 + (f / 0.25) ** 4) + 0.1 for f in FREQUENCIES))
    y, taps = blurred(scene, KERNELS["gaussian:1.8"], smoothed)
    y, middle = y[:, :112, :112], slice(len(taps) // 2, len(taps) // 2 + 112)
    found = invert(
        y, taps, defaults="picture", noise="white", tone_curve=ToneCurve.srgb(white), lambda_rule=lambda_rule
    )
    errors = [(image[0] - scene[middle, middle]).square().mean() for image in (found.image, y)]
    assert found.lambda_choice.rule == taken
    assert bool(errors[0] < errors[1]) == (taken == "whiteness")


def test_a_model_is_a_sentence():
    assert SMOOTHED.sentence.startswith("colored, σ 2: ")
    assert "times less power" in SMOOTHED.sentence
    assert "sharpening" in replace(SMOOTHED, spectrum=SMOOTHED.spectrum[::-1]).sentence
    assert NoiseModel(1.5).sentence == "white, σ 1.5"


@pytest.mark.parametrize(
    "numbers",
    [
        *({"sigma": -1.0}, {"sigma": 10**400}),
        *({"spectrum": (1.0,)}, {"spectrum": (0.0,) * 14}, {"spectrum": ("a",) * 14}, {"spectrum": (10**400,) * 14}),
    ],
)
def test_numbers_that_are_no_noise_are_refused(numbers):
    with pytest.raises(UsageError, match="noise"):
        NoiseModel(**numbers)
