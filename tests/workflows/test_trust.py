"""What is called trusted: right kernels are, whatever the noise; layers of another kind and amplified noise are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from blurred_pictures import sharp_picture
from PIL import Image, ImageDraw
from torch.nn import functional

import deconv_cli
from deconv_cli.diagnostics.residual_tests import EXCESS, ResidualFinding
from deconv_cli.io import read_image
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.sources.formula import make_kernel
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.workflows import measurement
from deconv_cli.workflows.arithmetic import caution_light
from deconv_cli.workflows.trust import (
    NEGLIGIBLE_RESIDUAL,
    ROUNDING,
    DoubtReason,
    doubt_clipping,
    measure_clipping,
)

SAMPLES = Path(__file__).parents[2] / "sample_images"


def random(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def reasons(result):
    return [doubt.reason for doubt in result.doubts]


LAYERS = {
    "strided": lambda x, w: functional.conv2d(x, w, padding=1, stride=2),
    "dilated": lambda x, w: functional.conv2d(x, w, padding=2, dilation=2),
    "transposed": lambda x, w: functional.conv_transpose2d(x, w, padding=1),
    "behind ReLU": lambda x, w: functional.conv2d(x, w, padding=1).relu() + torch.arange(float(len(w)))[:, None, None],
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
        causes = {"behind ReLU": "such as ReLU", "valid": 'padding="valid"'}
        assert causes.get(kind, "a stride, a dilation, groups or a bias") in doubt.sentence
        assert len(doubt.sentence) < 240
    with pytest.raises(deconv_cli.UntrustworthyResultError):
        result.raise_for_status()


def trained(n_channels):
    """Weights as training makes them: some mixtures of channels come through a hundred times as strongly as others."""
    u, v = (torch.linalg.qr(random((n_channels, n_channels), seed))[0] for seed in (1, 2))
    taps = 0.3 * random((n_channels, 3, 3), seed=3) + 1
    return torch.einsum("oc,c,chw,ci->oihw", u, torch.logspace(0, -2, n_channels), taps, v)


CENTRAL = random((2, 1, 3, 3), seed=1)
CENTRAL[..., 1, 1] += 8


@pytest.mark.parametrize("weight", [trained(16), CENTRAL], ids=["square", "more outputs"])
def test_a_padding_that_leaves_little_over_is_doubted_too(weight):
    """The data of a layer are exact, and what is left of them has no explanation, however little it is."""
    n_inputs = weight.shape[1]
    y = functional.conv2d(random((1, n_inputs, *[16 if n_inputs > 1 else 100] * 2), seed=9), weight)
    result = deconv_cli.invert(y, weight)
    assert result.residual.relative < 0.05
    (doubt,) = result.doubts
    assert doubt.reason is DoubtReason.RESIDUAL
    assert 'try padding="valid"' in doubt.sentence
    assert deconv_cli.invert(y, weight, padding="valid").is_trusted


@pytest.mark.parametrize(
    "weight",
    [trained(16), random((8, 4, 3, 3), seed=1), random((4, 8, 3, 3), seed=1)],
    ids=["square", "more outputs", "fewer outputs"],
)
def test_rounding_and_some_noise_leave_a_layer_trusted(weight):
    y = functional.conv2d(random((1, weight.shape[1], 16, 16), seed=9), weight, padding=1)
    step = y.abs().max() / 127
    stored = [y.half(), y.bfloat16(), (y / step).round() * step, y + 1e-3 * y.std() * random(y.shape, seed=4)]
    for data in stored:
        assert deconv_cli.invert(data.float(), weight).is_trusted
    assert deconv_cli.invert(y, weight, lam=0.1).is_trusted


def test_lost_directions_are_counted():
    """16 channels of which 15 are independent, on 5 × 5 pixels: the inverse is that of least norm."""
    mixing = torch.linalg.qr(random((16, 16), seed=5))[0][:, :15]
    weight = torch.einsum("oihw,ir,jr->ojhw", random((16, 16, 3, 3), seed=1), mixing, mixing)
    x = random((1, 16, 5, 5))
    result = deconv_cli.invert(functional.conv2d(x, weight, padding=1), weight, lam=0.0)
    assert float((result.image - x).norm() / x.norm()) == pytest.approx((25 / 400) ** 0.5, abs=0.06)
    assert result.lost_directions.sentence.startswith("25 of 400 directions of the input leave no trace in the data")


@pytest.mark.parametrize(
    ("n_lost", "options"),
    [
        (36, {"boundary": "circular"}),
        (36, {"method": "iterative"}),
        (64 * 3 - 36 * 2, {"padding": "valid", "method": "iterative"}),
        (36 * 3 - 16 * 3, {"padding": "valid", "lam": 1e-6}),
    ],
)
def test_lost_directions_are_counted_without_a_matrix_too(n_lost, options):
    """Two of three channels are the same; with λ > 0 no more is counted than sizes tell."""
    weight = random((3, 3, 3, 3), seed=1)
    weight[2] = weight[1]
    n_outputs = 4 if "lam" in options else 6
    lost = deconv_cli.invert(random((1, 3, n_outputs, n_outputs)), weight, **{"lam": 0.0, **options}).lost_directions
    assert lost.n_lost == n_lost
    assert lost.is_exact == ("boundary" in options)


def test_an_estimate_far_too_large_is_doubted_without_any_residual():
    weight = random((4, 4, 3, 3), seed=1).double()
    y = functional.conv_transpose2d(random((1, 4, 24, 24)).double(), weight, padding=1)
    result = deconv_cli.invert(y, weight, lam=0.0)
    assert result.residual.relative < 1e-6
    assert DoubtReason.AMPLIFICATION in reasons(result)


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
    """Without noise there is no scale to compare a residual with."""
    image = read_image(SAMPLES / "astronaut.png").values[0].float()[:, :96, :96]
    kernel = make_kernel("gaussian:2")
    y = deconv_cli.forward(image, kernel, boundary="reflect", padding="same")
    options = {} if lam is None else {"lam": lam}
    result = deconv_cli.invert(y, kernel, boundary="reflect", defaults="picture", **options)
    assert result.residual.relative < NEGLIGIBLE_RESIDUAL
    assert result.is_trusted, result.doubts


def soft_blobs(n, seed=4):
    """Spots of light on an even background, as fluorescence shows them."""
    generator = torch.Generator().manual_seed(seed)
    places, widths, heights = (torch.rand(40, n_each, 1, 1, generator=generator) for n_each in (2, 1, 1))
    axis = torch.arange(n, dtype=torch.float64)
    squares = (axis[:, None] - n * places[:, :1]) ** 2 + (axis[None] - n * places[:, 1:]) ** 2
    spots = (0.2 + 0.8 * heights) * torch.exp(-squares / 2 / (2.5 + 5.5 * widths) ** 2)
    return 600 + 10000 * spots.sum(0)


def test_the_rounding_of_a_smooth_scene_of_16_bits_accuses_no_kernel():
    """The only noise is that of rounding, and the estimate contains a part of it."""
    taps = make_kernel("motion:11@30").double()
    y = functional.conv2d(soft_blobs(200)[None], taps[None, None])[0].round().to(torch.int32)
    result = deconv_cli.invert(y[None], taps, defaults="picture")
    assert ROUNDING < result.residual.relative < NEGLIGIBLE_RESIDUAL
    assert result.is_trusted, result.doubts


@pytest.mark.parametrize(("length", "is_trusted"), [(11, True), (15, False)])
def test_a_wrong_kernel_is_found_below_the_noise(length, is_trusted):
    """The estimate contains most of the noise, but the residual is larger than the rest of it."""
    y = 100 * photograph("motion:11@30", 0.0).int()
    y = y + (50 * random(y.shape, seed=3)).round().int()
    result = deconv_cli.invert(y, make_kernel(f"motion:{length}@30"), defaults="picture")
    assert result.residual_tests.interior_rms < EXCESS * result.residual_tests.noise
    assert (DoubtReason.RESIDUAL_TESTS not in reasons(result)) is is_trusted


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


def test_a_doubt_alone_says_what_to_do_about_lambda():
    """Smoothing that is too strong by the residual is too weak by the range."""
    smooth = deconv_cli.invert(photograph("gaussian:2", 3), make_kernel("gaussian:2"), defaults="picture", lam=1.0)
    assert smooth.cautions == (ResidualFinding.OVER_SMOOTHED.sentence,)
    doubted = replace(smooth, clipping=replace(smooth.clipping, share=0.1))
    assert reasons(doubted) == [DoubtReason.CLIPPING]
    assert doubted.cautions == ()


def test_a_result_that_its_residual_rejects_is_trusted_nowhere():
    y = photograph("motion:15@0", 2)
    result = deconv_cli.invert(y, make_kernel("motion:15@90"), defaults="picture", lam=1e-2, predict=True)
    assert result.residual_tests.finding is ResidualFinding.WRONG_KERNEL
    assert DoubtReason.RESIDUAL_TESTS in reasons(result)
    assert result.predicted_error.trusted_share == 0
    assert result.predicted_error.trusted_depth is None
    fine = replace(result.residual_tests, finding=ResidualFinding.FINE)
    assert DoubtReason.RESIDUAL_TESTS not in reasons(replace(result, residual_tests=fine))


def test_amplified_noise_that_leaves_the_range_is_doubted():
    kernel = make_kernel("gaussian:1.5")
    result = deconv_cli.invert(photograph("gaussian:1.5", 8), kernel, defaults="picture", lam=1e-8)
    assert DoubtReason.CLIPPING in reasons(result)
    assert result.clipping.share > 0.05


def stored_scene(kernel, light):
    """The astronaut, blurred in light or in stored values, and stored in eight bits."""
    curve, scene, taps = (
        ToneCurve.srgb(255.0),
        read_image(SAMPLES / "astronaut.png").values[0].double()[1:2],
        make_kernel(kernel),
    )
    scene = curve.to_light(scene) if light == "linear" else scene
    y = functional.conv2d(scene[None], taps.double()[None, None])[0]
    return (curve.to_stored(y) if light == "linear" else y).round().clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize(
    ("kernel", "light"), [("disk:3.7", "linear"), ("disk:3.7", "stored"), ("gaussian:2", "stored")]
)
def test_a_photograph_restored_in_the_wrong_light_is_warned_of(kernel, light):
    """A Gaussian has no zeros that could tell."""
    y, other = stored_scene(kernel, light), "stored" if light == "linear" else "linear"
    options = {"defaults": "picture", "tone_curve": ToneCurve.srgb(255.0)}
    if light == "stored":  # as floating samples of 0 to 1
        y, options = y / 255, {**options, "tone_curve": ToneCurve.srgb(1.0), "prior": "quadratic"}
    right, wrong = (deconv_cli.invert(y, make_kernel(kernel), light=each, **options) for each in (light, other))
    assert not any("try light" in caution for caution in right.cautions)
    assert any(f'try light="{light}"' in caution for caution in wrong.cautions) == (kernel == "disk:3.7")


@pytest.mark.parametrize("sentences", [(), ("the kernel is of quite another size",)])
def test_a_kernel_of_another_size_is_named_instead_of_the_light(sentences, monkeypatch):
    monkeypatch.setattr(measurement, "describe_alignment", lambda *_, **__: (sentences, False))
    y, kernel = stored_scene("disk:3.7", "linear"), make_kernel("disk:3.7")
    options = {"defaults": "picture", "tone_curve": ToneCurve.srgb(255.0), "prior": "quadratic", "light": "stored"}
    result = deconv_cli.invert(y, kernel, **options)
    assert any("try light" in caution for caution in result.cautions) != bool(sentences)


def test_data_without_noise_need_no_lambda_and_no_warning_about_it():
    x = sharp_picture("camera")[:, 60:140, 40:130].double() / 255
    y = deconv_cli.forward(x, make_kernel("gaussian:1"), boundary="circular")
    result = deconv_cli.invert(y, make_kernel("gaussian:1"), boundary="circular", defaults="picture")
    assert result.lambda_choice.failure is not None
    assert result.warnings == ()


def test_light_without_noise_gets_the_least_lambda_and_advice_that_helps():
    stars = torch.zeros(1, 96, 96, dtype=torch.float64)
    stars[0, ::17, ::13] = 1e4
    y = (deconv_cli.forward(stars, make_kernel("moffat:4@2.8")) + 100)[:, 8:-8, 8:-8].float()
    result = deconv_cli.invert(y, make_kernel("moffat:4@2.8"), defaults="picture")
    (doubt,) = [doubt for doubt in result.doubts if doubt.reason is DoubtReason.LAMBDA]
    assert doubt.sentence.startswith(
        "the data hold no noise that λ could be chosen by, so the least λ, 1e-09, was used"
    )
    assert 'method="richardson-lucy" or nonnegative=True' in doubt.sentence
    assert result.reasons.lam.startswith("at the lower limit, chosen by")
    assert not any("no noise" in caution for caution in result.cautions)


def test_a_wrong_border_of_data_without_noise_is_named_before_kernel_and_lambda():
    x = sharp_picture("camera")[:, 40:160, 40:180].double()
    y = deconv_cli.forward(x, make_kernel("gaussian:2"), boundary="symmetric")  # that SciPy calls reflect
    result = deconv_cli.invert(y, make_kernel("gaussian:2"), boundary="reflect", defaults="picture")
    (sentence,) = result.warnings
    assert ResidualFinding.WRONG_BOUNDARY.sentence in sentence  # the page reads it
    assert ', or boundary="symmetric", since libraries name these two differently;' in sentence
    assert not any("fits the kernel better" in note for note in result.notes)
    unnamed = deconv_cli.invert(y, make_kernel("gaussian:2"), boundary="replicate", defaults="picture")
    assert 'try boundary="unknown"; no λ was found' in unnamed.warnings[0]
    given = {"boundary": "reflect", "defaults": "picture", "method": "iterative", "max_iterations": 2}
    assert reasons(deconv_cli.invert(y, make_kernel("gaussian:2"), **given)) == [
        DoubtReason.RESIDUAL_TESTS,
        DoubtReason.SOLVER,
    ]


def test_what_was_clipped_before_is_not_counted():
    data = torch.tensor([[[0, 0, 100, 200]]], dtype=torch.uint8)
    image = torch.tensor([[[-80.0, -5.0, 300.0, 200.0]]])
    assert measure_clipping(image, data, 0, 255).share == 0.5
    assert measure_clipping(image[..., :3], data, 0, 255).share == pytest.approx(2 / 3)
    assert measure_clipping(image, torch.zeros_like(data), 0, 255).share == 0
    inside = torch.tensor([[[50, 60, 100, 200]]], dtype=torch.uint8)
    for estimate, share in ((image, 0.5), (image.clamp_max(200), 0.25), (image.clamp_min(0), 0.25)):
        assert measure_clipping(estimate, inside, 0, 255).share == share


def test_light_beside_saturated_samples_may_exceed_white():
    data = torch.full((1, 9, 12), 90, dtype=torch.uint8)
    data[..., 4:6] = 255
    image = torch.where((data < 255).roll(1, -1) & (data < 255).roll(-1, -1), 90.0, 400.0)
    assert measure_clipping(image, data, 0, 255).share == pytest.approx(0.2)
    assert measure_clipping(image, data, 0, 255, kernel_size=(3, 3)).share == 0
    assert measure_clipping(image.roll(3, -1), data, 0, 255, kernel_size=(3, 3)).share == pytest.approx(3 / 9)
    assert measure_clipping(255 - image, data, 0, 255, kernel_size=(3, 3)).share == pytest.approx(0.2)  # darkness


def test_samples_below_zero_are_told_as_such_and_those_within_the_noise_are_not_counted():
    data = torch.tensor([[[0, 10, 40, 50]]], dtype=torch.int32)
    image = torch.tensor([[[0.0, -4.0, 30.0, 60.0]]])
    found = measure_clipping(image, data, 0, 65535)
    assert (found.side, found.share) == ("below", pytest.approx(1 / 3))
    (doubt,) = doubt_clipping(found, "quadratic")
    assert "lie far below 0:" in doubt.sentence
    assert "with a larger λ," in doubt.sentence
    assert "richardson-lucy" not in doubt.sentence
    (of_light,) = doubt_clipping(found, "quadratic", is_light=True)
    assert 'below 0: for light from few photons use method="richardson-lucy" or nonnegative=True;' in of_light.sentence
    assert "richardson-lucy" not in doubt_clipping(found, "nonnegative", is_light=True)[0].sentence
    assert "with a larger strength," in doubt_clipping(found, "photo")[0].sentence
    assert measure_clipping(image, data, 0, 65535, noise=3.0).share == 0
    assert measure_clipping(image - 5, data, 0, 65535, noise=100.0).share > 0  # noise of any size hides no faults
    assert (
        "far outside 0 to 20:" in doubt_clipping(measure_clipping(image, data[..., :3], 0, 20), "quadratic")[0].sentence
    )
    assert (
        "far above 20:" in doubt_clipping(measure_clipping(image.abs(), data[..., :3], 0, 20), "quadratic")[0].sentence
    )


@pytest.mark.parametrize(("kernel", "is_right"), [("disk:2.5", True), ("disk:5", False)])
def test_text_overshoots_a_little_under_its_own_kernel_and_far_under_a_wide_one(kernel, is_right):
    page, curve = Image.new("L", (250, 250), 250), ToneCurve.srgb(255.0)
    for row in range(19):
        ImageDraw.Draw(page).text((6, 4 + 13 * row), f"{row} quick brown foxes; port={8000 + row} jumps over", fill=20)
    scene = curve.to_light(
        torch.frombuffer(bytearray(page.tobytes()), dtype=torch.uint8).reshape(1, 1, 250, 250).double()
    )
    blurred = functional.conv2d(scene, make_kernel("disk:2.5").double()[None, None])[0]
    y = curve.to_stored(blurred).round().clamp(0, 255).to(torch.uint8)
    result = deconv_cli.invert(y, make_kernel(kernel), defaults="picture", prior="photo", tone_curve=curve)
    assert result.quadratic.clipping.share > 0.05
    assert result.is_trusted is is_right, result.doubts
    assert any('prior="tv"' in note for note in result.notes) is is_right
    of_test = [doubt.sentence for doubt in replace(result, clipping=None).doubts]
    assert is_right or any(s.endswith("lie far outside 0 to 255: the kernel is probably wrong") for s in of_test)


def test_a_predicted_error_does_not_change_the_range():
    counts = torch.poisson(torch.rand(1, 40, 40, generator=torch.Generator().manual_seed(3)) * 9).byte()
    options = {"lam": 3e-3, "defaults": "picture", "prior": "quadratic"}
    found = [deconv_cli.invert(counts, make_kernel("gaussian:1.5"), predict=p, **options) for p in (False, True)]
    assert found[0].clipping == found[1].clipping
    assert found[0].clipping.share > 0


def test_the_expected_error_of_light_is_given_in_stored_values():
    """Where the picture is black the curve is steep, and noise below black is stored as black."""
    whole, kernel = read_image(SAMPLES / "astronaut.png").spanned_by(2).values, make_kernel("disk:2")
    stored = whole[..., :128, 64:192]
    curve = ToneCurve.srgb(255.0)
    y = deconv_cli.forward(stored.float(), kernel, padding="valid", tone_curve=curve)
    y = (y + random(y.shape)).clamp(0, 255).round().byte()
    result = deconv_cli.invert(y, kernel, defaults="picture", prior="quadratic", tone_curve=curve, predict=True)
    edge = (stored.shape[-1] - y.shape[-1]) // 2
    real = float((result.image.clamp(0, 255) - stored[..., edge:-edge, edge:-edge]).square().mean().sqrt())
    assert real / 1.5 < result.predicted_error.in_samples < 1.5 * real, real


@pytest.mark.parametrize(("gain", "is_told"), [(1.2, True), (1.3, False)])
def test_a_saturated_picture_is_not_compared_in_two_lights(gain, is_told):
    """Samples that were cut off are 4 and 23 %."""
    y = (gain * stored_scene("disk:3.7", "stored").float()).round().clamp_max(255).byte()
    kernel, curve = Kernel.from_tensor(make_kernel("disk:3.7")), ToneCurve.srgb(255.0)
    assert (caution_light(y, kernel, curve, is_light=True) is not None) is is_told


def test_a_flat_picture_is_not_compared_in_two_lights():
    y = torch.full((1, 200, 210), 120, dtype=torch.uint8)
    kernel, curve = Kernel.from_tensor(make_kernel("motion:9@30")), ToneCurve.srgb(255.0)
    assert caution_light(y, kernel, curve, is_light=False) is None


@pytest.mark.parametrize(("boundary", "is_noted"), [("zero", True), ("symmetric", False)])
def test_a_picture_that_is_taken_for_a_tensor_is_noted_if_its_estimate_leaves_the_range(boundary, is_noted):
    y = deconv_cli.forward(
        read_image(SAMPLES / "camera.png").values[0].double(), make_kernel("disk:3"), boundary="symmetric"
    )
    result = deconv_cli.invert(y, make_kernel("disk:3"), defaults="tensor", boundary=boundary)
    assert any('if these are a picture, try defaults="picture"' in note for note in result.notes) is is_noted


def test_a_kernel_that_explains_much_less_of_a_photograph_than_its_noise_allows_is_doubted():
    y = stored_scene("disk:3.7", "stored")[:, :150, :150]
    wide = torch.rand(101, 101, generator=torch.Generator().manual_seed(0))
    result = deconv_cli.invert(y, wide, defaults="picture", tone_curve=ToneCurve.srgb(255.0))
    assert result.settings.objective == "photo"
    assert any("times as large as the noise" in doubt.sentence for doubt in result.doubts)


def test_a_blank_picture_accuses_no_kernel():
    y = torch.full((1, 100, 100), 255, dtype=torch.uint8)
    result = deconv_cli.invert(y, make_kernel("disk:2"), defaults="picture", tone_curve=ToneCurve.srgb(255.0))
    assert result.is_trusted
