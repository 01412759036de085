"""What is called trusted: right kernels are, whatever the noise; layers of another kind and amplified noise are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional

import deconv_cli
from deconv_cli.diagnostics.residual_tests import ResidualFinding
from deconv_cli.io import read_image
from deconv_cli.kernels.sources.formula import make_kernel
from deconv_cli.solvers.solution import Status
from deconv_cli.workflows.trust import NEGLIGIBLE_RESIDUAL, DoubtReason, measure_clipping

SAMPLES = Path(__file__).parents[2] / "sample_images"


def random(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def reasons(result):
    return [doubt.reason for doubt in result.doubts]


LAYERS = {
    "strided": lambda x, w: functional.conv2d(x, w, padding=1, stride=2),
    "dilated": lambda x, w: functional.conv2d(x, w, padding=2, dilation=2),
    "transposed": lambda x, w: functional.conv_transpose2d(x, w, padding=1),
    "behind ReLU": lambda x, w: functional.conv2d(x, w, padding=1).relu(),
    "valid": lambda x, w: functional.conv2d(x, w),
}


CHANNELS = [(4, 4), (4, 8), (1, 1)]
FITTING = [(kind, channels) for kind in LAYERS for channels in CHANNELS if (kind, channels) != ("transposed", (4, 8))]


@pytest.mark.parametrize(("kind", "channels"), FITTING)
def test_a_layer_of_another_kind_is_doubted(kind, channels):
    n_inputs, n_outputs = channels
    weight = random((n_outputs, n_inputs, 3, 3), seed=1)
    y = LAYERS[kind](random((2, n_inputs, 32, 32)), weight)
    result = deconv_cli.invert(y, weight, max_iterations=300)
    assert not result.is_trusted
    if n_outputs > n_inputs:
        (doubt,) = result.doubts
        assert doubt.reason is DoubtReason.RESIDUAL
        assert all(word in doubt.sentence for word in ("stride", "dilation", "groups", "transposed", "ReLU"))
        assert 'padding="valid"' in doubt.sentence
    with pytest.raises(deconv_cli.UntrustworthyResultError):
        result.raise_for_status()


def test_grouped_weights_are_doubted():
    weight = random((8, 2, 3, 3), seed=1)
    y = functional.conv2d(random((1, 4, 24, 24)), weight, groups=2, padding=1)
    assert reasons(deconv_cli.invert(y, weight)) == [DoubtReason.RESIDUAL]


def test_an_estimate_far_too_large_is_doubted_without_any_residual():
    weight = random((4, 4, 3, 3), seed=1).double()
    y = functional.conv_transpose2d(random((1, 4, 24, 24)).double(), weight, padding=1)
    result = deconv_cli.invert(y, weight, lam=0.0)
    assert result.residual.relative < 1e-6
    assert DoubtReason.AMPLIFICATION in reasons(result)


@pytest.mark.parametrize("noise", [0, 1e-3])
@pytest.mark.parametrize("channels", [(4, 4), (3, 8), (8, 4)])
@pytest.mark.parametrize("lam", [None, 1e-2])
def test_a_plain_layer_is_trusted(noise, channels, lam):
    n_inputs, n_outputs = channels
    weight = random((n_outputs, n_inputs, 3, 3), seed=2)
    y = functional.conv2d(random((2, n_inputs, 32, 32)), weight, padding=1)
    y = y + noise * y.std() * random(y.shape, seed=3)
    assert deconv_cli.invert(y, weight, lam=lam).is_trusted


@pytest.mark.parametrize("penalty", ["identity", "gradient"])
def test_an_estimate_is_large_where_differences_were_penalized(penalty):
    kernel = random((3, 3, 3, 3), seed=2)
    result = deconv_cli.invert(functional.conv2d(random((1, 3, 16, 16)), kernel), kernel, lam=1e-3, penalty=penalty)
    result = replace(
        result,
        residual=replace(result.residual, relative=0.01),
        scale=replace(result.scale, amplification=6.6),
    )
    assert (DoubtReason.AMPLIFICATION in reasons(result)) == (penalty == "identity")


def test_noise_that_was_given_explains_a_residual():
    weight = random((8, 3, 3, 3), seed=2)
    y = functional.conv2d(random((1, 3, 32, 32)), weight, padding=1)
    noisy = y + 0.1 * y.std() * random(y.shape, seed=3)
    assert reasons(deconv_cli.invert(noisy, weight)) == [DoubtReason.RESIDUAL]
    given = deconv_cli.invert(noisy, weight, lam=1e-6, noise_sigma=0.1 * float(y.std()), predict=True)
    assert DoubtReason.RESIDUAL not in reasons(given)


def photograph(kernel, noise, tmp_path=None, quality=None):
    """A frame of a larger scene, blurred, noised, and stored in eight bits."""
    with Image.open(SAMPLES / "camera.png") as picture:
        scene = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(1, 1, *picture.size[::-1])
    y = functional.conv2d(scene.float(), make_kernel(kernel).float().reshape(1, 1, *make_kernel(kernel).shape))[0]
    y = (y + noise * random(y.shape)).round().clamp(0, 255).to(torch.uint8)
    if quality is None:
        return y
    Image.fromarray(y[0].numpy()).save(tmp_path / "y.jpg", quality=quality)
    return read_image(tmp_path / "y.jpg").values[0]


@pytest.mark.parametrize(("noise", "quality"), [(0, None), (2, None), (8, None), (0, 75), (0, 95)])
def test_a_photograph_under_its_own_kernel_is_trusted(noise, quality, tmp_path):
    """The error of a JPEG is no white noise, and accuses no kernel."""
    y = photograph("disk:3.2", noise, tmp_path, quality)
    result = deconv_cli.invert(y, make_kernel("disk:3.2"), defaults="picture", predict=True)
    assert result.is_trusted, result.doubts
    assert result.predicted_error.trusted_share > 0


@pytest.mark.parametrize("lam", [None, 1e-5])
def test_what_forward_made_is_trusted(lam):
    """Without noise there is no scale that a residual could be held against."""
    image = read_image(SAMPLES / "astronaut.png").values[0].float()[:, :96, :96]
    kernel = make_kernel("gaussian:2")
    y = deconv_cli.forward(image, kernel, boundary="reflect", padding="same")
    options = {} if lam is None else {"lam": lam}
    result = deconv_cli.invert(y, kernel, boundary="reflect", defaults="picture", **options)
    assert result.residual.relative < NEGLIGIBLE_RESIDUAL
    assert result.is_trusted, result.doubts


def test_a_lambda_that_does_not_suit_the_noise_is_warned_of():
    """The result is not doubted for it; one that was chosen from the data is not said to be too large."""
    taps, y = make_kernel("gaussian:2"), photograph("gaussian:2", 3)
    chosen = deconv_cli.invert(y, taps, defaults="picture")
    assert chosen.cautions == ()
    smooth = deconv_cli.invert(y, taps, defaults="picture", lam=100 * chosen.lam)
    assert smooth.is_trusted
    assert smooth.cautions == (ResidualFinding.OVER_SMOOTHED.sentence,)
    assert replace(smooth, lambda_choice=chosen.lambda_choice).cautions == ()
    noisy = replace(chosen, residual_tests=replace(chosen.residual_tests, finding=ResidualFinding.NOISE_FITTED))
    assert noisy.is_trusted
    assert noisy.cautions == (ResidualFinding.NOISE_FITTED.sentence,)


def test_a_result_that_its_residual_rejects_is_trusted_nowhere():
    y = photograph("motion:15@0", 2)
    result = deconv_cli.invert(y, make_kernel("motion:15@90"), defaults="picture", lam=1e-2, predict=True)
    assert result.residual_tests.finding is ResidualFinding.WRONG_KERNEL
    assert DoubtReason.RESIDUAL_TESTS in reasons(result)
    assert result.predicted_error.trusted_share == 0
    assert result.predicted_error.trusted_depth is None
    fine = replace(result.residual_tests, finding=ResidualFinding.FINE)
    assert DoubtReason.RESIDUAL_TESTS not in reasons(replace(result, residual_tests=fine))


@pytest.mark.parametrize(
    "options", [{"lam": 1e-8}, pytest.param({"prior": "tv", "weight": 1e-4}, marks=pytest.mark.exhaustive)]
)
def test_amplified_noise_that_leaves_the_range_is_doubted(options):
    result = deconv_cli.invert(
        photograph("gaussian:1.5", 8), make_kernel("gaussian:1.5"), defaults="picture", **options
    )
    assert DoubtReason.CLIPPING in reasons(result)
    assert result.clipping.share > 0.05


def test_what_was_clipped_before_is_not_counted():
    data = torch.tensor([[[0, 0, 100, 200]]], dtype=torch.uint8)
    image = torch.tensor([[[-80.0, -5.0, 300.0, 200.0]]])
    assert measure_clipping(image, data, 0, 255).share == 0.5
    assert measure_clipping(image[..., :3], data, 0, 255).share == pytest.approx(2 / 3)
    assert measure_clipping(image, torch.zeros_like(data), 0, 255).share == 0
    inside = torch.tensor([[[50, 60, 100, 200]]], dtype=torch.uint8)
    for estimate, share in ((image, 0.5), (image.clamp_max(200), 0.25), (image.clamp_min(0), 0.25)):
        assert measure_clipping(estimate, inside, 0, 255).share == share


def test_a_solver_that_did_not_finish_is_doubted():
    y = functional.conv2d(random((1, 3, 16, 16)), random((3, 3, 3, 3), seed=2), padding=1)
    result = deconv_cli.invert(y, random((3, 3, 3, 3), seed=2), method="iterative", max_iterations=1)
    assert result.solution.status is Status.MAX_ITERATIONS
    assert DoubtReason.SOLVER in reasons(result)
    assert Status.MAX_ITERATIONS.value in result.warnings[0]
