"""A kernel that varies over the frame, through the library."""

from pathlib import Path

import pytest
import torch
from cases import random

import deconv_cli
from deconv_cli.errors import UsageError
from deconv_cli.io import read_image

SAMPLES = Path(__file__).parents[2] / "sample_images"

PLACES = (1 / 6, 0.5, 5 / 6)


def blurs():
    """Strokes whose length and direction change from place to place, 9 × 9 taps."""
    place = torch.arange(9).double() - 4
    taps = []
    for i in range(3):
        for j in range(3):
            angle = torch.tensor(0.5 + 0.4 * (i - j)).double()
            along = angle.cos() * place[:, None] + angle.sin() * place
            across = angle.cos() * place - angle.sin() * place[:, None]
            taps.append(torch.exp(-(along.square() / (2 * (1 + 0.3 * (i + j)) ** 2) + across.square())))
    stacked = torch.stack(taps)
    return (stacked / stacked.sum(dim=(1, 2), keepdim=True)).reshape(3, 3, 9, 9)


FIELD = deconv_cli.KernelField(blurs(), PLACES, PLACES)


@pytest.fixture(scope="module")
def scene():
    samples = read_image(SAMPLES / "camera.png").values
    return samples[..., 60:156, 160:260].float()


def error(image, truth):
    return float((image - truth).square().mean().sqrt())


def noisy(scene, **options):
    y = deconv_cli.forward(scene, FIELD, **options)
    return y + 0.5 * random(y.shape, seed=3, dtype=torch.float32)


def test_the_field_restores_much_better_than_the_mean_kernel(scene):
    y = noisy(scene, boundary="symmetric")
    found = deconv_cli.invert(y, FIELD, defaults="picture", lam=1e-3)
    mean = deconv_cli.invert(y, blurs().mean(dim=(0, 1)), defaults="picture", lam=1e-3)
    assert found.is_trusted
    assert found.choice.method == "varying"
    assert error(found.image, scene) < 0.7 * error(mean.image, scene)


def test_each_channel_has_a_lambda_of_its_own_near_the_best(scene):
    field = deconv_cli.KernelField(blurs()[:2, :1], PLACES[:2], PLACES[:1])
    y = deconv_cli.forward(scene, field, boundary="symmetric")
    y = torch.cat([y + sigma * random(y.shape, seed=3, dtype=torch.float32) for sigma in (0.5, 4)], dim=1)
    options = {"defaults": "picture", "boundary": "symmetric", "tolerance": 1e-4}
    found = deconv_cli.invert(y, field, **options)
    assert found.lam[1] > 3 * found.lam[0]
    assert "median of 2 places" in found.reasons.lam
    others = [deconv_cli.invert(y, field, lam=10.0**-k, **options) for k in range(1, 5)]
    for c in range(2):
        least = min(error(other.image[:, c], scene[:, 0]) for other in others)
        assert error(found.image[:, c], scene[:, 0]) < 1.1 * least


@pytest.mark.parametrize("boundary", ["circular", "unknown"])
def test_equal_kernels_give_what_one_gives(scene, boundary):
    taps = blurs()[1, 1]
    field = deconv_cli.KernelField(taps.expand(3, 2, 9, 9), PLACES, PLACES[:2])
    y = noisy(scene, boundary="circular")
    options = {"defaults": "picture", "boundary": boundary, "lam": 1e-3, "dtype": "float64", "tolerance": 1e-8}
    found, single = deconv_cli.invert(y, field, **options), deconv_cli.invert(y, taps, **options)
    torch.testing.assert_close(found.image, single.image, rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    "options",
    [
        {"nonnegative": True, "lam": 1e-3},
        {"prior": "tv", "weight": 0.5, "tolerance": 0.02},
        {"method": "richardson-lucy", "max_iterations": 20},
    ],
)
def test_other_objectives_take_a_field_too(scene, options):
    truth = scene[..., 30:70, 10:50]
    y = noisy(truth, boundary="symmetric")
    found = deconv_cli.invert(y, FIELD, boundary="symmetric", **options)
    assert error(found.image, truth) < 0.9 * error(y, truth)


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda y: deconv_cli.invert(y, FIELD, predict=True), "only a single kernel allows a predicted error"),
        (lambda y: deconv_cli.invert(y, FIELD, truth=y), "only a single kernel allows a predicted error"),
        (lambda y: deconv_cli.invert(y, FIELD, method="strip"), "varies over the frame"),
        (
            lambda y: deconv_cli.pseudo_inverse(FIELD, input_size=(72, 84)),
            "only forward and invert take a kernel that varies",
        ),
    ],
)
def test_what_is_for_single_kernels_is_refused_in_a_sentence(scene, refused, message):
    with pytest.raises(UsageError, match=message):
        refused(scene)
