"""`--light`: the blur acts in linear light or in the stored samples, and the output records which."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import deconv_cli
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.io import read_image

KERNEL = "gaussian:1.2"
TRUSTED_OR_NOT = (ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY)
SRGB = deconv_cli.ToneCurve.srgb(255)
SENTENCE = "in linear light, undone from sRGB (the file names no curve): optical blur acts on light"


@pytest.fixture
def night(tmp_path):
    """A dark scene with bright lamps, where light and stored values differ most, 24 × 28 in colors."""
    rows, columns = np.mgrid[:24, :28]
    scene = (60 + rows[..., None] + 20 * np.sin(columns[..., None] / np.array([2, 3, 4]))).astype(np.uint8)
    scene[8:11, 9:13] = 250
    scene[16:18, 20:22, 0] = 230
    path = tmp_path / "night.png"
    Image.fromarray(scene).save(path)
    return path


@pytest.fixture
def forward(deconv, tmp_path):
    def run(source, *options, to="blurred.tif"):
        report = deconv(
            "forward", source, "-k", KERNEL, "-o", tmp_path / to, "--force", "--json", "-q", *options
        ).report
        return report, read_image(tmp_path / to)

    return run


@pytest.fixture
def invert(deconv, tmp_path):
    def run(source, *options, to="restored.tif"):
        done = deconv(
            *("invert", source, "-k", KERNEL, "-o", tmp_path / to, "--noise", "white", "--force", "--json", "-q"),
            *options,
            expect=TRUSTED_OR_NOT,
        )
        return done.report, read_image(tmp_path / to).values

    return run


def test_forward_blurs_light_and_writes_samples(forward, night):
    report, image = forward(night, "--boundary", "reflect")
    x = SRGB.to_light(read_image(night).values.float())
    expected = SRGB.to_stored(deconv_cli.forward(x, deconv_cli.make_kernel(KERNEL), boundary="reflect"))
    assert torch.equal(image.values, expected)
    assert (report["light"], report["light_reason"]) == ("linear", SENTENCE)
    assert report["tone_curve"] == {"name": "sRGB", "white": 255}
    stored, plain = forward(night, "--boundary", "reflect", "--light", "stored")
    assert (stored["light"], stored["tone_curve"]) == ("stored", None)
    assert (plain.values - expected).abs().max() > 20


def test_noise_is_added_to_light(forward, night):
    _, clean = forward(night)
    _, noisy = forward(night, "--noise", "gaussian:0.5", "--seed", "4")
    difference = SRGB.to_light(noisy.values) - SRGB.to_light(clean.values)
    assert float(difference.std()) == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("light", ["linear", "stored"])
@pytest.mark.parametrize("name", ["blurred.tif", "blurred.png", "blurred.npy", "blurred.jpg"])
def test_invert_takes_the_light_that_forward_recorded(forward, invert, night, name, light):
    forward(night, "--light", light, to=name)
    report, _ = invert(night.parent / name, "--lambda", "1e-4")
    assert report["light"] == light
    if light == "linear":
        by_forward = "in linear light, undone from sRGB: recorded in the file by deconv forward"
        assert report["light_reason"] == by_forward
    else:
        as_stored = "in the samples as they are stored: recorded in the file by deconv forward"
        assert report["light_reason"] == as_stored


def test_records_of_earlier_versions_are_of_stored_values(forward, invert, night):
    forward(night, to="old.npy")
    beside = night.parent / "old.npy.json"
    record = json.loads(beside.read_text())
    for name in ("light", "light_reason", "tone_curve", "digest"):
        del record[name]
    beside.write_text(json.dumps(record))
    report, _ = invert(night.parent / "old.npy", "--lambda", "1e-4")
    assert report["light"] == "stored"


def test_the_truth_is_compared_in_light(invert, night, forward):
    _, blurred = forward(night, "--padding", "valid", to="seen.png")
    report, image = invert(blurred.path, "--lambda", "1e-3", "--truth", night)
    truth = SRGB.to_light(read_image(night).values.float())
    expected = float((SRGB.to_light(image) - truth).square().mean().sqrt())
    assert report["predicted_error"]["actual_root_mean_square"] == pytest.approx(expected, rel=1e-3)


def test_a_profile_is_undone_and_carried(forward, invert, night):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with Image.open(night) as picture:
        picture.save(night.with_name("profiled.png"), icc_profile=profile)
    name = 'the ICC profile "sRGB built-in"'
    report, blurred = forward(night.with_name("profiled.png"))
    assert (
        report["light_reason"]
        == f"in linear light, undone from {name} (embedded in the file): optical blur acts on light"
    )
    assert (blurred.values - forward(night)[1].values).abs().max() < 0.01
    report, _ = invert(forward(night.with_name("profiled.png"))[1].path, "--lambda", "1e-4")
    assert report["tone_curve"] == {"name": name, "white": 255}


def test_a_profile_that_is_lost_is_asked_for(forward, refuses, invert, night, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with Image.open(night) as picture:
        picture.save(night.with_name("profiled.png"), icc_profile=profile)
    forward(night.with_name("profiled.png"), to="lost.npy")
    says = ["--light linear needs the tone curve", "lack the ICC profile", "use --light stored"]
    refuses("invert", tmp_path / "lost.npy", "-k", KERNEL, "-o", tmp_path / "x.npy", code=ExitCode.USAGE, says=says)
    assert invert(tmp_path / "lost.npy", "--light", "stored", "--lambda", "1e-4")[0]["light"] == "stored"


def test_floats_and_tensors_are_taken_as_stored(invert, refuses, save, tmp_path):
    path = save("features", np.random.default_rng(0).random((3, 12, 12)))
    report, _ = invert(path, "--lambda", "1e-3")
    assert report["light"] == "stored"
    assert "no tone curve is known" in report["light_reason"]
    says = "--light linear needs the tone curve of the samples, which is not known"
    for command in ("forward", "invert"):
        words = (command, path, "-k", KERNEL, "-o", tmp_path / "x.npy", "--light", "linear")
        refuses(*words, code=ExitCode.USAGE, says=says)


def test_a_tiff_file_without_a_profile_is_linear_unless_said_otherwise(invert, forward, night):
    _, plain = forward(night, "--light", "stored", "--output-dtype", "uint8")
    with Image.open(plain.path) as picture:
        Image.fromarray(np.asarray(picture)).save(night.with_name("plain.tif"))
    report, _ = invert(night.with_name("plain.tif"), "--lambda", "1e-3")
    reason = "without an ICC profile they count as light"
    assert report["light_reason"] == f"in the samples as they are stored: {reason}"
    report, _ = invert(night.with_name("plain.tif"), "--lambda", "1e-3", "--light", "linear")
    assert report["light_reason"].endswith("undone from sRGB (the file names no curve): given by the user")


def test_each_channel_by_itself_has_the_rounding_of_its_own_light():
    """A dark channel is rounded more finely in light than a bright one; λ is chosen for each."""
    random = torch.Generator().manual_seed(2)
    scene = torch.rand(2, 40, 44, generator=random) * torch.tensor([12.0, 200.0])[:, None, None] + 5
    kernel, options = deconv_cli.make_kernel("gaussian:1"), {"defaults": "picture", "prior": "quadratic"}
    y = deconv_cli.forward(scene, kernel, boundary="circular").round().to(torch.uint8)
    result = deconv_cli.invert(y, kernel, boundary="circular", tone_curve=SRGB, **options)
    floors = [slope * 12**-0.5 for slope in SRGB.slopes(y)]
    sigmas = [channel.lambda_choice.sigma for channel in result.channels]
    assert floors[0] < 0.2 * floors[1]
    assert all(sigma >= 0.999 * floor for sigma, floor in zip(sigmas, floors, strict=True))
    assert sigmas[0] < sigmas[1]


def test_channels_that_the_kernel_mixes_need_one_curve(night):
    table = torch.linspace(0, 1, 9, dtype=torch.float64)
    curve = deconv_cli.ToneCurve(torch.stack([table, table**2, table**3]), 255)
    kernel = torch.full((3, 1, 3, 3), 1 / 9) * torch.tensor([1.0, 0.8, 0.6])[:, None, None, None]
    with pytest.raises(deconv_cli.ShapeError, match="has 3 channels, but the image has 1"):
        deconv_cli.invert(read_image(night).values, kernel, light="linear", tone_curve=curve)


def test_a_picture_of_two_levels_is_noted(deconv, tmp_path):
    light = np.random.default_rng(0).random((64, 64)) < np.linspace(0.1, 0.9, 64)
    Image.fromarray(light.astype("uint8") * 255).save(tmp_path / "two.png")
    words = ["invert", tmp_path / "two.png", "-k", "disk:2", "-o", tmp_path / "x.png"]
    found = deconv(*words, expect=(ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY))
    assert "note: the picture has only two levels" in found.stderr
    Image.fromarray((np.linspace(0, 255, 4096).reshape(64, 64)).astype("uint8")).save(tmp_path / "two.png")
    found = deconv(*words, "--force", expect=(ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY))
    assert "two levels" not in found.stderr
