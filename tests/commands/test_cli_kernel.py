"""`deconv kernel estimate` and `align`, and `deconv invert --kernel estimate`."""

import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from blurred_pictures import SAMPLES, blurred_picture, sharp_picture, write_blurred
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional

from deconv_cli.commands import invert, kernel_commands
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.io.records import KEYWORD
from deconv_cli.kernels.blind.blurred_picture import BlurredPicture, doubt_points
from deconv_cli.kernels.blind.estimate import Candidate, KernelEstimate, Parameter
from deconv_cli.kernels.sources.formula import make_kernel
from deconv_cli.report.run import describe_found


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    return write_blurred(tmp_path_factory.mktemp("photos") / "photo.png", "camera", "disk:3.3")


def test_estimate_writes_the_kernel_and_says_how_sure_it_is(deconv, photo, tmp_path):
    target = tmp_path / "k.safetensors"
    run = deconv("kernel", "estimate", photo, "-o", target, "--json")
    report = run.report
    assert (report["found"], report["family"]) == (True, "disk")
    radius = report["parameters"]["radius"]
    assert radius["value"] == pytest.approx(3.3, rel=0.05)
    assert 0 < radius["error"] < 0.3
    assert report["runner_up"] != report["kernel"]
    assert report["log_likelihood_ratio"] > 0
    (taps,) = load_file(target).values()
    assert torch.equal(taps, make_kernel(report["kernel"]).float())
    # What was written is read as the kernel it is.
    restored = deconv("invert", photo, "--kernel", target, "-o", tmp_path / "x.png", "-q", "--json").report
    assert restored["kernel"]["shape"] == list(taps.shape)
    assert "± " in run.stderr


def test_a_sharp_picture_has_no_kernel(deconv, tmp_path):
    target = tmp_path / "k.npy"
    run = deconv("kernel", "estimate", SAMPLES / "camera.png", "-o", target, expect=ExitCode.UNTRUSTWORTHY)
    assert "no blur was found" in run.stderr
    assert not target.exists()
    answer = deconv("kernel", "estimate", SAMPLES / "camera.png", "--json").report
    assert (answer["found"], answer["kernel"], answer["parameters"]) == (False, None, {})
    words = ["invert", SAMPLES / "camera.png", "--kernel", "estimate", "-o", tmp_path / "x.png"]
    run = deconv(*words, expect=ExitCode.UNTRUSTWORTHY)
    (line,) = run.errors
    assert "no blur was found" in line
    assert len(line) < 250
    assert not (tmp_path / "x.png").exists()


def test_saturated_samples_may_be_why_no_blur_was_found(deconv, tmp_path):
    with Image.open(SAMPLES / "camera.png") as picture:
        picture.point(lambda value: min(255, 2 * value)).save(tmp_path / "bright.png")
    reason = deconv("kernel", "estimate", tmp_path / "bright.png", "--json").report["reason"]
    assert re.search(r"; \d+ % of its pixels are saturated, which may hide one", reason), reason


def test_a_blur_too_slight_to_be_told_from_none_is_named(deconv, tmp_path):
    """The likelihood alone would be enough, as the same table says."""
    photo = write_blurred(tmp_path / "slight.png", "camera", "motion:5@20")
    run = deconv("kernel", "estimate", photo, "--family", "motion", "--json")
    assert run.report["log_likelihood_ratio_to_no_blur"] > 12
    assert run.report["found"] is False
    slight = run.report["candidates"][0]["kernel"]
    assert f"{slight}, covers less than 8 pixels" in run.report["reason"]
    assert "covers less than 8" in " ".join(run.stderr.split())


def test_invert_finds_the_kernel_itself(deconv, photo, tmp_path):
    target = tmp_path / "sharp.png"
    page = tmp_path / "page.html"
    report = deconv("invert", photo, "--kernel", "estimate", "-o", target, "--report", page, "--json").report
    assert f"Found in the picture itself: {report['kernel']['path']}" in page.read_text(encoding="utf-8")
    assert report["kernel"]["estimate"]["family"] == "disk"
    assert report["kernel"]["path"].startswith("disk:3.")
    (note,) = [note for note in report["notes"] if "was found in the picture" in note]
    assert re.search(r"next comes \S+, (about [\d.e+]+|over a million) times less likely$", note)
    assert "--kernel=disk:3." in report["rerun"]
    reach = make_kernel("disk:3.3").shape[0] // 2
    truth = sharp_picture("camera")[0, reach:-reach, reach:-reach].double()
    blurred = torch.from_numpy(np.asarray(Image.open(photo)).copy()).double()
    restored = torch.from_numpy(np.asarray(Image.open(target)).copy()).double()
    assert float((restored - truth).square().mean()) < 0.5 * float((blurred - truth).square().mean())


def test_colors_of_a_tiff_file_without_a_profile_may_be_a_developed_photograph(deconv, photo, tmp_path):
    gray = np.asarray(Image.open(photo)).astype(np.uint16) * 257
    color, plain = tmp_path / "color.tif", tmp_path / "gray.tif"
    tifffile.imwrite(color, np.stack([gray] * 3, axis=-1), photometric="rgb")
    tifffile.imwrite(plain, gray)
    words = ["--family", "disk"]
    assert "add --light linear" in deconv("kernel", "estimate", color, *words).stderr
    for path, light in ((plain, "auto"), (color, "linear"), (color, "stored")):
        assert "--light" not in deconv("kernel", "estimate", path, *words, "--light", light).stderr
    found = deconv("invert", color, "-k", "estimate", "-o", tmp_path / "x.tif", "--prior", "quadratic")
    assert len(re.findall("add --light linear", found.stderr)) == 1


def field_of_stars(kernel):
    """Stars between the samples of a detector, under a kernel, with Poisson noise."""
    drawn = torch.rand(3, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sharp = torch.zeros(1, 200, 200, dtype=torch.float64)
    for y, x, light in zip(*drawn, strict=True):
        place = [round(float(at) * 180) + 10 for at in (y, x)]
        sharp[0, place[0], place[1]] = 300 + 8e4 * light**4
    blurred = 100 + functional.conv2d(sharp, make_kernel(kernel)[None, None], padding="same")[0]
    return torch.poisson(blurred.clamp_min(0), generator=torch.Generator().manual_seed(2)).float()


def test_a_kernel_that_is_not_the_profile_of_the_stars_is_doubted(deconv, tmp_path):
    tifffile.imwrite(tmp_path / "stars.tif", field_of_stars("moffat:4@3").numpy().astype("uint16"))
    words = ["invert", tmp_path / "stars.tif", "-k", "estimate", "-o", tmp_path / "x.tif"]
    run = deconv(*words, expect=ExitCode.UNTRUSTWORTHY)
    assert "which do not have the profile of the kernel gaussian" in run.stderr
    assert "deconv kernel from-beads" in run.stderr
    assert run.stderr.count("most of the light lies in isolated points") == 1
    assert "±" not in run.stderr
    picture = BlurredPicture.of(field_of_stars("gaussian:1.8")[None])
    for sigma, is_right in ((1.8, True), (1.4, False)):
        found = KernelEstimate(True, "gaussian", (Parameter("SIGMA", sigma, 0.1),), (), 20.0)
        assert (doubt_points(found, picture) is None) == is_right


def test_an_output_that_cannot_be_is_refused_before_the_kernel_is_looked_for(deconv, photo, tmp_path, monkeypatch):
    monkeypatch.setattr(invert, "estimate_kernel_of", lambda *_: pytest.fail("the kernel was looked for"))
    monkeypatch.setitem(sys.modules, "zarr", None)
    (tmp_path / "there.png").touch()
    for name, says in (("there.png", "exists already"), ("x.zarr", "needs the missing package zarr")):
        run = deconv("invert", photo, "-k", "estimate", "-o", tmp_path / name, expect=ExitCode.USAGE)
        assert says in run.stderr


def test_a_map_is_a_kernel_that_varies(deconv, photo, tmp_path):
    target = tmp_path / "field.safetensors"
    report = deconv("kernel", "estimate", photo, "--map", target, "--json").report
    assert report["map"]["is_uniform"] is None  # a single part
    assert len(report["map"]["kernels"]) == len(report["map"]["rows"])
    restored = deconv("invert", photo, "--kernel", target, "--lambda", "1e-2", "-o", tmp_path / "x.png", "--json")
    assert restored.report["kernel"]["path"] == str(target)
    with safe_open(target, "pt") as stored:
        assert '"schema": 2' in stored.metadata()[KEYWORD]


def test_a_free_kernel_is_written(deconv, photo, tmp_path):
    target = tmp_path / "free.npy"
    done = deconv("kernel", "estimate", photo, "--free", "--size", "9", "-o", target, "--json")
    taps, report = np.load(target), done.report
    assert "as a formula" in done.stderr
    assert list(taps.shape) == report["free"]["shape"]
    assert taps.min() >= 0
    assert taps.sum() == pytest.approx(1, abs=1e-5)


def test_align_names_the_mistake_and_writes_the_kernel(deconv, tmp_path):
    taps = make_kernel("motion:13@30")
    picture = blurred_picture("camera", taps)
    Image.fromarray(picture[0].numpy()).save(tmp_path / "photo.png")
    np.save(tmp_path / "wrong.npy", taps.T.numpy())
    target = tmp_path / "corrected.npy"
    report = deconv(
        "kernel", "align", tmp_path / "photo.png", "--kernel", tmp_path / "wrong.npy", "-o", target, "--json"
    ).report
    assert (report["is_aligned"], report["orientation"]) == (False, "transposed")
    assert np.allclose(np.load(target), taps.numpy(), atol=1e-7)
    fine = deconv("kernel", "align", tmp_path / "photo.png", "--kernel", target)
    assert "fits the picture" in fine.stdout


def test_align_writes_no_kernel_of_quite_another_size(deconv, photo, tmp_path):
    np.save(tmp_path / "wrong.npy", make_kernel("disk:10").numpy())
    target = tmp_path / "corrected.npy"
    words = ["kernel", "align", photo, "--kernel", tmp_path / "wrong.npy", "-o", target, "--json"]
    run = deconv(*words, expect=ExitCode.UNTRUSTWORTHY)
    assert not target.exists()
    assert (run.report["is_aligned"], run.report["scale"], run.report["output"]) == (False, None, None)
    assert f"deconv kernel estimate {photo}" in re.sub(r"\s+", " ", run.stderr)


def test_invert_doubts_a_kernel_that_lies_wrongly(deconv, tmp_path):
    taps = make_kernel("motion:13@30")
    picture = blurred_picture("camera", taps)
    Image.fromarray(picture[0].numpy()).save(tmp_path / "photo.png")
    for name, kernel in (("right", taps), ("wrong", taps.T)):
        np.save(tmp_path / f"{name}.npy", kernel.numpy())
    shared = ["-o", tmp_path / "x.png", "--force", "--lambda", "1e-3", "--json"]
    anything = (ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY)
    right = deconv("invert", tmp_path / "photo.png", "-k", tmp_path / "right.npy", *shared, expect=anything).report
    wrong = deconv("invert", tmp_path / "photo.png", "-k", tmp_path / "wrong.npy", *shared, expect=anything).report
    assert not any("fits the kernel better" in doubt["sentence"] for doubt in right["doubts"])
    assert any("fits the kernel better if it is transposed" in doubt["sentence"] for doubt in wrong["doubts"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["kernel", "estimate", "missing.png"], "missing.png"),
        (["kernel", "estimate", str(SAMPLES / "camera.png"), "--free"], "add --output"),
        (["kernel", "estimate", str(SAMPLES / "camera.png"), "--size", "9"], "add --free"),
        (["kernel", "estimate", str(SAMPLES / "camera.png"), "--map", "m.npy"], "writes .safetensors files only"),
        (
            ["kernel", "estimate", str(SAMPLES / "camera.png"), "--map", "m.safetensors", "-o", "m.safetensors"],
            "which this run writes too",
        ),
        (["kernel", "estimate", str(SAMPLES / "features.safetensors")], "write it as a picture, such as .tif"),
        (["kernel", "estimate", str(SAMPLES / "pollen.ome.tif")], "holds 24 (axes ZYX)"),
        (["kernel", "estimate", str(SAMPLES / "camera.png"), "--family", "disc"], "perhaps you mean disk"),
        (
            ["kernel", "estimate", str(SAMPLES / "camera.png"), "-o", "k.png"],
            "written as .tif, .safetensors, .pt, .npy or .npz",
        ),
        (["invert", str(SAMPLES / "camera.png"), "-k", "estimat"], "perhaps you mean --kernel estimate"),
        (["forward", str(SAMPLES / "camera.png"), "-k", "estimate"], "works only with deconv invert"),
        (["forward", str(SAMPLES / "camera.png"), "-k", "estimate", "--layer", "a"], "works only with deconv invert"),
        (["forward", str(SAMPLES / "camera.png"), "-k", "microscop"], "perhaps you mean --kernel microscope"),
        (["forward", str(SAMPLES / "camera.png"), "-k", "estimat"], "'estimat' does not exist; check the name"),
        (["invert", str(SAMPLES / "camera.png"), "-k", "motion.npy"], "check the name and the folder"),
        (["invert", str(SAMPLES / "camera.png"), "-k", "estimate", "-k", "disk:3"], "disk:3 has no effect"),
        (["invert", str(SAMPLES / "camera.png"), "-k", "estimate", "--clean-kernel"], "--clean-kernel has no effect"),
        (["invert", str(SAMPLES / "camera.png"), "-k", str(SAMPLES / "camera.png")], "or --no-clean-kernel if"),
    ],
)
def test_refusals(deconv, arguments, words):
    assert words in deconv(*arguments, expect=ExitCode.USAGE).stderr


@pytest.mark.parametrize(("evidence", "is_noted"), [(13.0, True), (90.0, False)])
def test_a_picture_that_shows_little_of_its_blur_is_told_how_to_find_the_path_of_a_camera(evidence, is_noted):
    candidates = (Candidate("gaussian", (1.2,), 10.0), Candidate("disk", (2.5,), 11.0), Candidate("none", (), 23.0))
    found = KernelEstimate(True, "gaussian", (Parameter("SIGMA", 1.2, 0.2),), candidates, evidence)
    advice = "if the camera shook, try deconv kernel estimate 'my photo.jpg' --free --output kernel.tif"
    assert any(advice in note for note in kernel_commands.notes_of(found, Path("my photo.jpg"))) == is_noted
    assert "disk:2.5 explains the picture about as well, so try it as --kernel too" in describe_found(found)


@pytest.mark.parametrize("radius", [4.0, 2.5])
def test_spots_of_different_widths_need_not_have_the_profile_of_the_kernel(radius):
    """Galaxies, each with a halo of its own, under a disk of radius 4."""
    drawn = torch.rand(5, 5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    at = torch.arange(400, dtype=torch.float64)
    sharp = torch.zeros(400, 400, dtype=torch.float64)
    for i, j in itertools.product(range(5), range(5)):
        square = (at[:, None] - 75 * i - 45).square() + (at - 75 * j - 45).square()
        light, width = drawn[i, j].tolist()
        sharp += (300 + 3000 * light) * torch.exp(-square.add(0.1).sqrt() / (0.5 + 2.5 * width**2))
    blurred = 100 + functional.conv2d(sharp[None, None], make_kernel("disk:4")[None, None], padding="same")[0]
    picture = BlurredPicture.of(torch.poisson(blurred, generator=torch.Generator().manual_seed(2)))
    found = KernelEstimate(True, "disk", (Parameter("RADIUS", radius, 0.1),), (), 20.0)
    assert (doubt_points(found, picture) is None) == (radius == 4.0)
