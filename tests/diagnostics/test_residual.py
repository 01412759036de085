"""Residuals in numbers by brute force, in one to three axes; noise and gain of data whose noise is known."""

import pytest
import torch
from cases import random

import deconv_cli
from deconv_cli.diagnostics.noise_level import estimate_gain, estimate_noise, estimate_noise_of_blurred
from deconv_cli.diagnostics.residual import EdgeBands, border_profile, summarize_residual
from deconv_cli.diagnostics.spectra import FadedImages
from deconv_cli.diagnostics.torus_modes import torus_modes
from deconv_cli.errors import ShapeError


def distances(size):
    """Pixels between each pixel and the nearest edge, one by one."""
    places = torch.cartesian_prod(*(torch.arange(n) for n in size)).reshape(-1, len(size))
    last = torch.tensor(size) - 1
    return torch.minimum(places, last - places).amin(-1).reshape(size)


@pytest.mark.parametrize("size", [(7,), (6, 9), (5, 6, 7)])
def test_bands_by_distance_from_the_edge(size):
    values = random((2, 3, *size))
    bands = EdgeBands(size, 3, values.device)
    distance = distances(size)
    assert torch.equal(bands.distance, distance)
    for k in range(bands.depth):
        chosen = distance == k if k < bands.depth - 1 else distance >= k
        assert int(bands.count[k]) == int(chosen.sum())
        assert float(bands.mean(values)[k]) == pytest.approx(float(values[..., chosen].mean()))


@pytest.mark.parametrize("size", [(40,), (36, 41), (33, 34, 35)])
def test_the_residual_by_channel_and_by_distance(size):
    residual, data = random((2, 3, *size)), random((2, 3, *size), seed=1)
    found = summarize_residual(residual, data, n_axes=len(size))
    for channel, ratio in enumerate(found.per_channel):
        expected = residual[:, channel].square().sum() / data[:, channel].square().sum()
        assert ratio == pytest.approx(float(expected) ** 0.5)
    profile = border_profile(residual, (3,) * len(size))
    on_edge = residual[..., distances(size) == 0]
    assert profile[0].residual_rms == pytest.approx(float(on_edge.square().mean()) ** 0.5)


def test_sizes_of_residuals_whose_squares_leave_their_type():
    """Single precision holds 2^90, but not its square."""
    residual, data = random((3, 20, 24)).float(), random((3, 20, 24), seed=1).float()
    plain, huge = summarize_residual(residual, data), summarize_residual(2.0**90 * residual, 2.0**90 * data)
    assert (huge.relative, huge.per_channel) == (plain.relative, plain.per_channel)
    assert huge.root_mean_square == pytest.approx(2.0**90 * plain.root_mean_square)
    bands = [border_profile(factor * residual, (3, 3)) for factor in (1.0, 2.0**90)]
    for one, other in zip(*bands, strict=True):
        assert other.residual_rms == pytest.approx(2.0**90 * one.residual_rms)


@pytest.mark.parametrize("size", [(400,), (40, 50), (12, 14, 16)])
def test_a_window_keeps_the_power_of_white_noise(size):
    images = random((50, 1, *size))
    faded = FadedImages.of(images, len(size))
    assert float(faded.spectrum.abs().square().mean()) == pytest.approx(float(images.square().mean()), rel=0.07)
    modes = torus_modes(random((1, 1, *(3,) * len(size))), size)
    expected = modes.of_outputs(faded.spectrum).abs().square().mean(0)
    assert torch.allclose(modes.power_of_outputs(faded), expected, rtol=1e-9)


def scene(size=160):
    """Smooth hills and a sharp square, blurred by 9 × 9 pixels."""
    across = torch.linspace(0, 6, size, dtype=torch.float64)
    image = 50 * torch.sin(across)[:, None] * torch.cos(1.7 * across) + 100
    image[40:90, 60:120] += 60
    return torch.nn.functional.avg_pool2d(image[None, None], 9, stride=1)[0]


def noise_of(y, n_axes=2):
    return estimate_noise_of_blurred(FadedImages.of(y, n_axes))


@pytest.mark.parametrize("noise", [0.1, 2.0])
def test_the_noise_of_a_blurred_picture_is_found(noise):
    image = scene()
    assert noise_of(image + noise * random(image.shape, seed=9)) == pytest.approx(noise, rel=0.1)


@pytest.mark.parametrize(("n_axes", "size"), [(1, (4000,)), (3, (20, 24, 22))])
def test_noise_and_gain_of_a_smooth_signal_and_stack_are_found(n_axes, size):
    smooth = 30 * torch.ones(size, dtype=torch.float64).cumsum(0) / size[0]
    y = (smooth + 2.5 * random(size))[None]
    assert noise_of(y, n_axes) == pytest.approx(2.5, rel=0.15)
    assert estimate_noise(y, n_axes) == pytest.approx(2.5, rel=0.1)
    with pytest.raises(ShapeError, match="at least " + "×".join("3" * n_axes)):
        estimate_noise(y[..., :2], n_axes)
    light = torch.linspace(20, 400, smooth.numel(), dtype=torch.float64).reshape(size)
    counts = torch.poisson(light.expand(4, *size), generator=torch.Generator().manual_seed(1))
    assert estimate_gain(3.0 * counts, n_axes) == pytest.approx(3.0, rel=0.15)


def test_noise_that_cannot_be_told_from_the_picture_is_not_made_up():
    assert noise_of(random((1, 64, 64))) is None
    # A picture without noise: at the highest frequencies only the leakage of the window is left.
    assert (noise_of(scene()) or 0) < 1e-4 * float(scene().std())
    assert noise_of(torch.ones(1, 64, 64)) is None
    # Too few samples to tell one frequency from another.
    steep = 100 * torch.arange(10.0, dtype=torch.float64).expand(1, 10, 10)
    assert noise_of(steep + random((1, 10, 10))) is None


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


@pytest.mark.parametrize(
    ("levels", "size", "part"),
    [(torch.arange(40.0), (128, 1024), 16), (torch.tensor([9.0, 1, 1, 1, 1] * 1000), (1200,), 160)],
)
def test_some_planes_of_large_data_stand_for_all(levels, size, part):
    """Of a stack whose noise grows with depth, and of a sensor with five kinds of rows."""
    y = levels.reshape(1, -1, *[1] * len(size)) * random((1, len(levels), *size))
    expected = estimate_noise(y[..., :part], 1 + len(size))
    assert estimate_noise(y, 1 + len(size)) == pytest.approx(expected, rel=0.05)


def test_noise_of_less_than_three_pixels_is_refused():
    with pytest.raises(ShapeError, match="at least 3×3"):
        estimate_noise(torch.zeros(1, 2, 9))
