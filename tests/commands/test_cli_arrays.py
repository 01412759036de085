"""Arrays that are pictures, and results that show mostly noise."""

import numpy as np
import pytest
import tifffile
import torch
from blurred_pictures import sharp_picture
from PIL import Image

import deconv_cli
from deconv_cli.blocks.preview_tiles import OF_PIECES
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.kernels.sources.formula import make_kernel
from deconv_cli.workflows.trust import DoubtReason

KERNEL = "moffat:3.3@2.5"
BOTH = (ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY)


@pytest.fixture
def stars(tmp_path):
    """Counts of a small star field, with and without their noise."""
    rng = np.random.default_rng(3)
    sharp, (rows, columns) = np.zeros((128, 128)), np.mgrid[:128, :128]
    for y, x, light in zip(*rng.uniform(6, 122, (2, 40)), 10 ** rng.uniform(3, 5, 40), strict=True):
        sharp += light / 9 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 2.9)
    blurred = 300 + deconv_cli.forward(torch.from_numpy(sharp)[None], make_kernel(KERNEL).double())[0].numpy()
    np.save(tmp_path / "exact.npy", blurred.astype("float32"))
    np.save(tmp_path / "stars.npy", rng.poisson(blurred).astype("float32"))
    np.save(tmp_path / "sharp.npy", (300 + sharp).astype("float32"))
    return tmp_path


def error(folder, name):
    return float(np.sqrt(np.mean((np.load(folder / name) - np.load(folder / "sharp.npy")) ** 2)))


def test_a_noisy_array_under_a_formula_is_taken_for_a_picture(deconv, stars):
    words = ["invert", stars / "stars.npy", "--kernel", KERNEL, "-o", stars / "out.npy", "--force"]
    found = deconv(*words, "--json", expect=BOTH).report
    assert any("--defaults tensor treats it" in note or 'defaults="tensor"' in note for note in found["notes"])
    assert any("its kernel is a formula" in note for note in found["notes"])
    assert error(stars, "out.npy") < error(stars, "stars.npy")
    assert "--defaults=picture" in found["rerun"]
    assert "default for tensors" in deconv(*words, "--defaults", "tensor", expect=BOTH).stderr


def test_an_array_under_the_kernel_of_a_blur_is_a_picture(deconv, stars):
    """Noise or not, unless deconv made it: Richardson–Lucy counts light in every array."""
    tifffile.imwrite(stars / "point.tif", make_kernel(KERNEL).numpy())
    deconv("forward", stars / "sharp.npy", "-k", KERNEL, "-o", stars / "made.npy")
    for name, kernel, *more, why in [
        ("exact.npy", KERNEL, "its kernel is a formula"),
        ("exact.npy", "point.tif", "its kernel is a picture of a point"),
        ("made.npy", KERNEL, "--method=richardson-lucy", "Richardson–Lucy counts light"),
    ]:
        words = [stars / name, "--kernel", stars / kernel if kernel.endswith("tif") else kernel, *more]
        found = deconv("invert", *words, "-o", stars / "out.npy", "--force", "--json", expect=BOTH).report
        assert any(f"treated as a picture, since {why}" in note for note in found["notes"])
        assert found["boundary"] == ("unknown" if name == "exact.npy" else "zero")
    done = deconv("invert", stars / "made.npy", "--kernel", KERNEL, "-o", stars / "out.npy", "--force").stderr
    assert "treated as a picture" not in done


@pytest.mark.parametrize("n", [120, 1000])
def test_a_noisy_signal_under_a_formula_is_restored_as_measured(deconv, save, tmp_path, n):
    places, random = np.linspace(0.0, 1000 if n == 1000 else 240, n), np.random.default_rng(0)
    truth = sum(100 * np.exp(-0.5 * ((places - middle) / 4) ** 2) for middle in (200, 450, 470, 800))
    deconv("forward", save("truth", truth), "-k", "gaussian:3", "--dimensions=1", "-o", tmp_path / "y.npy")
    noisy = np.load(tmp_path / "y.npy") + random.normal(size=n)
    words = ["invert", save("noisy", noisy), "-k", "gaussian:3", "--dimensions=1", "-o", tmp_path / "x.npy", "--json"]
    run = deconv(*words)
    assert "the array is treated as a signal that was measured" in run.stderr
    assert np.abs(np.load(tmp_path / "x.npy") - truth).max() < 25
    words[1] = tmp_path / "y.npy"
    assert "treated as a signal" not in deconv(*words, "--force").stderr


def test_a_result_that_is_mostly_noise_is_doubted(deconv, stars):
    words = ["invert", stars / "stars.npy", "--kernel", KERNEL, "-o", stars / "out.npy", "--defaults", "tensor"]
    run = deconv(*words, expect=ExitCode.UNTRUSTWORTHY)
    assert "the estimate shows mostly noise" in run.stderr
    assert DoubtReason.NOISE in OF_PIECES
    assert "--lambda auto" in run.stderr


def test_noise_between_bright_stars_is_doubted_only_if_it_drowns_them(deconv, tmp_path):
    """λ is the best for the squared error, which the stars dominate; the noise of the background grows 50 times."""
    rng, sharp = np.random.default_rng(5), torch.zeros(1, 160, 160, dtype=torch.float64)
    for light, y, x in zip(1e5 * rng.exponential(1, 60), *rng.integers(0, 160, (2, 60)), strict=True):
        sharp[0, y, x] += light
    blurred = deconv_cli.forward(sharp, make_kernel("moffat:2.5@3").double())[0].clamp_min(0)
    np.save(tmp_path / "stars.npy", rng.poisson(300 + blurred.numpy()).astype("float32"))
    words = ["invert", tmp_path / "stars.npy", "-o", tmp_path / "out.npy", "-f", "--defaults", "picture", "--kernel"]
    said = deconv(*words, "moffat:2.5@3").stderr
    (warning,) = (line for line in said.splitlines() if line.startswith("warning: "))
    assert "the noise between bright points is" in warning
    assert "--method richardson-lucy" in said
    too_wide = deconv(*words, "moffat:3.1@3", expect=ExitCode.UNTRUSTWORTHY)
    assert "the estimate shows mostly noise" in too_wide.stderr


def test_a_batch_says_in_what_light_it_restored(deconv, tmp_path):
    samples = np.random.default_rng(1).integers(0, 255, (24, 24), "uint8")
    for name in ("a.png", "b.png"):
        Image.fromarray(samples).save(tmp_path / name)
    tifffile.imwrite(tmp_path / "c.tif", samples)
    words = ["invert", tmp_path, "--kernel", "gaussian:0.6", "--lambda", "0.1", "-o", tmp_path / "out"]
    said = deconv(*words, expect=BOTH).stderr
    assert said.count("restored in linear light") == 1
    assert said.count("restored in the samples as they are stored") == 1


def test_what_is_clipped_when_it_is_written_is_doubted(deconv, photograph, tmp_path):
    """Total variation with next to no weight, of a noisy JPEG."""
    blurred, noisy, kernel = tmp_path / "blurred.tif", tmp_path / "noisy.jpg", ["-k", "gaussian:1.5"]
    deconv("forward", photograph, *kernel, "--noise", "gaussian:8", "-o", blurred)
    deconv("forward", photograph, *kernel, "--noise", "gaussian:8", "--output-dtype", "uint8", "-o", noisy)
    words = ["invert", noisy, *kernel, "--boundary", "zero", "--prior", "tv", "--weight", "1e-4"]
    done = deconv(*words, "--output-dtype", "uint8", "-o", tmp_path / "x.png", "--json", expect=ExitCode.UNTRUSTWORTHY)
    (sentence,) = [doubt["sentence"] for doubt in done.report["doubts"] if doubt["reason"] == "clipping"]
    assert "smooth more, with a larger weight, or" in sentence
    assert done.report["clipping"]["share"] > 0.05
    # Samples of fractions have no range, but they are clipped where they are written as whole numbers.
    words = ["invert", blurred, *kernel, "--defaults", "picture", "--boundary", "zero", "--lambda", "1e-8"]
    fractions = deconv(*words, "-o", tmp_path / "x.tif", "--json", expect=(ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY))
    assert fractions.report["clipping"] is None
    done = deconv(*words, "--output-dtype", "uint8", "-o", tmp_path / "z.png", "--json", expect=ExitCode.UNTRUSTWORTHY)
    assert "clipping" in [doubt["reason"] for doubt in done.report["doubts"]]


def test_a_result_without_a_trusted_pixel_is_doubted_whole_in_blocks_and_among_others(deconv, tmp_path):
    samples = np.random.default_rng(0).normal(1000, 50, (64, 64)).round().astype(np.uint16)
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        tifffile.imwrite(tmp_path / "in" / f"{name}.tif", samples)
    words = ["--kernel", "gaussian:2", "--lambda", "10", "--predict", "--json"]
    for source, *more in [("in/a.tif",), ("in/a.tif", "--block-size", "48"), ("in",)]:
        output = tmp_path / ("out" if source == "in" else "out.tif")
        options = [*words, *more, "-o", output, "--force"]
        done = deconv("invert", tmp_path / source, *options, expect=ExitCode.UNTRUSTWORTHY)
        assert "no pixel can be trusted" in done.stderr
        assert source == "in" or done.report["is_trusted"] is False


def test_the_boundaries_of_a_singular_kernel_are_not_called_well_posed(deconv, save):
    table = deconv("inspect", save("difference", [[1.0, -1.0]]), "--as", "kernel").stdout
    assert "condition infinite" in table
    assert "well posed" not in table.replace("not well posed", "")


def test_an_array_that_is_a_picture_is_told_the_one_option(deconv, save, tmp_path):
    picture = save("cells", 200 * np.random.default_rng(0).random((40, 44)))
    taps = save("taps", make_kernel("gaussian:1"))
    run = deconv("invert", picture, "-k", taps, "-o", tmp_path / "x.npy", expect=ExitCode.UNTRUSTWORTHY)
    (warning,) = [line for line in run.stderr.splitlines() if line.startswith("warning")]
    assert "or the data are a picture (try --defaults picture)" in warning
    assert len(warning) < 280


def test_each_input_decides_how_a_formula_is_read(deconv, save, values, tmp_path):
    rng = np.random.default_rng(5)
    inputs = save("a", rng.random(30, dtype=np.float32)), save("b", rng.random((9, 8), dtype=np.float32))
    deconv("forward", *inputs, "-k", "gaussian:1", "-o", tmp_path / "out")
    for path in inputs:
        deconv("forward", path, "-k", "gaussian:1", "-o", tmp_path / "alone.npy", "--force")
        assert torch.equal(values(tmp_path / "out" / path.name), values(tmp_path / "alone.npy"))


def test_a_kernel_that_does_not_fit_is_refused_before_the_format_of_the_output(refuses, tmp_path):
    np.save(tmp_path / "y.npy", np.ones((7, 20, 20), np.float32))
    np.save(tmp_path / "k.npy", np.ones((3, 5, 3, 3), np.float32))
    words = ["invert", tmp_path / "y.npy", "-k", tmp_path / "k.npy", "-o", tmp_path / "x.png"]
    refuses(*words, code=ExitCode.INPUT_REFUSED, says="gives 3 channels, but the image of 20×20 samples has 7")


@pytest.mark.parametrize("noise", [1e-4, 1e-3])
def test_a_kernel_that_is_too_wide_for_a_picture_with_little_noise_is_doubted(deconv, tmp_path, noise):
    sharp = sharp_picture("camera").double() / 255
    blurred = deconv_cli.forward(sharp, make_kernel("gaussian:2"), padding="valid")[0]
    noise = noise * torch.randn(blurred.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    np.save(tmp_path / "y.npy", (blurred + noise).float().numpy())
    words = ["invert", tmp_path / "y.npy", "-o", tmp_path / "x.npy", "--force", "--json", "-k"]
    assert deconv(*words, "gaussian:2").report["doubts"] == []
    wrong = deconv(*words, "gaussian:3", expect=ExitCode.UNTRUSTWORTHY).report["doubts"]
    assert any("the kernel is probably too wide" in doubt["sentence"] for doubt in wrong)
    assert {doubt["reason"] for doubt in wrong} == {"kernel"}
