"""Channels with a kernel or a λ of their own, and kernels that vary over the frame."""

from pathlib import Path

import pytest
import torch
from cases import random

import deconv_cli
from deconv_cli.errors import ShapeError, UsageError
from deconv_cli.io import read_image
from deconv_cli.workflows.trust import name_channels

KERNELS = torch.stack([torch.outer(a, b) for a, b in [(x.abs(), y.abs()) for x, y in random((3, 2, 5)).unbind()]])
KERNELS /= KERNELS.sum(dim=(1, 2), keepdim=True)


@pytest.fixture(scope="module")
def images():
    """Three channels of steps, in a batch of two."""
    return random((2, 3, 40, 36)).cumsum(-1).cumsum(-2) / 20


def noisy(images):
    sigma = torch.tensor([1e-3, 0.05, 0.5], dtype=images.dtype)[:, None, None]
    return deconv_cli.forward(images, KERNELS) + sigma * random(images.shape)


@pytest.mark.parametrize("padding", ["same", "valid", "full"])
@pytest.mark.parametrize("batch", [slice(None), 0])
def test_forward_takes_each_channel_by_itself(images, padding, batch):
    x, bias = images[batch], random((3,))
    y = deconv_cli.forward(x, KERNELS, padding=padding, bias=bias)
    grouped = torch.nn.functional.conv2d(
        images, KERNELS.flip(0).flip(0)[:, None], bias, groups=3, padding={"same": 2, "valid": 0, "full": 4}[padding]
    )
    torch.testing.assert_close(y, grouped[batch])


@pytest.mark.parametrize(
    "options", [{"lam": 1e-3}, {"lam": 1e-2, "nonnegative": True}, {"prior": "tv", "weight": 0.1, "max_iterations": 20}]
)
def test_each_channel_is_restored_as_if_it_were_alone(images, options):
    y, bias = noisy(images), random((3,))
    found = deconv_cli.invert(y, KERNELS, bias=bias, **options)
    for c in range(3):
        alone = deconv_cli.invert(y[:, [c]], KERNELS[c], bias=bias[[c]], **options)
        assert torch.equal(found.image[:, [c]], alone.image)
        assert found.residual.per_channel[c] == pytest.approx(alone.residual.relative)
    assert found.solution.value.shape[:2] == (2, 3)
    assert found.lam == options.get("lam")
    forth = deconv_cli.forward(found.image, KERNELS)
    data = y - bias[:, None, None]
    assert found.residual.absolute == pytest.approx(float((data - forth).norm()), rel=1e-6)
    assert found.residual.relative == pytest.approx(float((data - forth).norm() / data.norm()), rel=1e-6)


@pytest.mark.parametrize("kernel", [KERNELS, KERNELS[0], KERNELS[0][None, None]])
def test_each_channel_gets_its_own_lambda(images, kernel):
    y = noisy(images)
    found = deconv_cli.invert(y, kernel, lam="auto", defaults="picture", boundary="circular")
    alone = [
        deconv_cli.invert(y[:, [c]], kernel[c] if kernel.ndim == 3 else kernel, defaults="picture", boundary="circular")
        for c in range(3)
    ]
    assert found.lam == tuple(one.lam for one in alone)
    assert torch.equal(found.image, torch.cat([one.image for one in alone], dim=1))
    assert max(found.lam) > 10 * min(found.lam)
    assert [channel.lam for channel in found.channels] == list(found.lam)
    again = deconv_cli.invert(y, kernel, lam=found.lam, defaults="picture", boundary="circular")
    assert torch.equal(again.image, found.image)


def test_the_error_of_every_channel_is_predicted(images):
    y = noisy(images)
    found = deconv_cli.invert(y, KERNELS, lam=(1e-6, 1e-4, 1e-2), truth=images)
    assert found.predicted_error.map.shape == images.shape
    for c in range(3):
        alone = deconv_cli.invert(y[:, [c]], KERNELS[c], lam=10.0 ** (2 * c - 6), truth=images[:, [c]])
        assert torch.equal(found.predicted_error.map[:, [c]], alone.predicted_error.map)
    actual = float((found.image - images).square().mean().sqrt())
    assert found.predicted_error.actual_root_mean_square == pytest.approx(actual, rel=1e-5)


def test_channels_differentiate(images):
    y, taps = noisy(images).requires_grad_(), KERNELS.clone().requires_grad_()
    deconv_cli.invert(y, taps, lam=1e-3).image.square().sum().backward()
    assert all(bool(tensor.grad.abs().sum(dim=(-1, -2)).gt(0).all()) for tensor in (y, taps))


def test_views_of_one_image_are_merged_in_tensors_and_apart_in_pictures(images):
    y, stacked = noisy(images), KERNELS[:, None]
    merged = deconv_cli.invert(y, stacked, lam=1e-3)
    assert merged.image.shape == (2, 1, 40, 36)
    apart = deconv_cli.invert(y, stacked, lam=1e-3, defaults="picture")
    assert torch.equal(apart.image, deconv_cli.invert(y, KERNELS, lam=1e-3, defaults="picture").image)
    (note,) = apart.notes
    assert "one kernel for each of 3 channels" in note
    assert 'defaults="tensor"' in note
    from deconv_cli.workflows.resolve_settings import RecordedConvolution

    made = deconv_cli.invert(y, stacked, lam=1e-3, defaults="picture", recorded=RecordedConvolution("zero", "same"))
    assert made.image.shape == (2, 1, 40, 36)


def test_what_is_not_there_for_each_channel_is_refused(images):
    y = noisy(images)
    with pytest.raises(
        ShapeError, match=r"is for 2 channels, but the image of .* samples has 3; .* one for each of them\.$"
    ):
        deconv_cli.invert(y, KERNELS[:2], lam=1e-3)
    with pytest.raises(ShapeError, match="is for 2 channels"):
        deconv_cli.forward(y, KERNELS[:2])
    with pytest.raises(ShapeError, match="a bias must have one number for each output channel"):
        deconv_cli.invert(y, KERNELS, lam=1e-3, bias=torch.ones(2))
    with pytest.raises(ShapeError, match="truth should have 3 channels"):
        deconv_cli.invert(y, KERNELS, lam=1e-3, truth=images[:, :2])
    with pytest.raises(
        ShapeError, match=r"truth should have \d+×\d+ pixels, as the estimate has, but has 5×\d+ pixels;"
    ):
        deconv_cli.invert(y, KERNELS, lam=1e-3, truth=images[..., :5, :])
    with pytest.raises(UsageError, match="λ was given for 2 channels, but the image"):
        deconv_cli.invert(y, KERNELS, lam=(1e-3, 1e-4))
    with pytest.raises(UsageError, match=r"λ was given for each of 3 channels, but a kernel of shape .* mixes them"):
        deconv_cli.invert(y, random((3, 3, 3, 3)), lam=(1e-3, 1e-4, 1e-3))
    with pytest.raises(UsageError, match=r"λ is 0.1, 0.2 here"):
        deconv_cli.invert(y, KERNELS, lam=(0.1, 0.2), lambda_rule="gcv")


def test_what_one_channel_does_wrong_is_said_of_all(images):
    y = noisy(images)
    data = torch.stack([y[0, 0], y[0, 1], random((40, 36)).abs().clamp_min(0.4)])
    steep = torch.stack([KERNELS[0], KERNELS[1], torch.full((5, 5), 0.04, dtype=torch.float64)])
    found = deconv_cli.invert(data, steep, lam=1e-8, boundary="circular")
    assert [channel.is_trusted for channel in found.channels][2] is False
    assert not found.is_trusted
    assert any(sentence.startswith("channel 3: ") for sentence in found.warnings)


def test_a_note_of_several_channels_is_given_once():
    notes = [(1, "4 % of the samples are full"), (2, "5 % of the samples are full"), (2, "b")]
    assert name_channels(notes, 2) == ["channels 1, 2: 4, 5 % of the samples are full", "channel 2: b"]
    assert name_channels([(1, "c"), (2, "c")], 2) == ["c"]


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


def noisy_field(scene, **options):
    y = deconv_cli.forward(scene, FIELD, **options)
    return y + 0.5 * random(y.shape, seed=3, dtype=torch.float32)


def test_the_field_restores_much_better_than_the_mean_kernel(scene):
    y = noisy_field(scene, boundary="symmetric")
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
    y = noisy_field(scene, boundary="circular")
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
    y = noisy_field(truth, boundary="symmetric")
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
