"""Arrays that are pictures, results that show mostly noise, and the axes of a layer."""

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import deconv_cli
from deconv_cli.blocks.fixed_choices import OF_PIECES
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
    assert any("--defaults tensor takes it" in note or 'defaults="tensor"' in note for note in found["notes"])
    assert error(stars, "out.npy") < error(stars, "stars.npy")
    assert "--defaults=picture" in found["rerun"]
    words[1] = stars / "exact.npy"
    assert "default for tensors" in deconv(*words).stderr


def test_a_result_that_is_mostly_noise_is_doubted(deconv, stars):
    words = ["invert", stars / "stars.npy", "--kernel", KERNEL, "-o", stars / "out.npy", "--defaults", "tensor"]
    run = deconv(*words, expect=ExitCode.UNTRUSTWORTHY)
    assert "the estimate shows mostly noise" in run.stderr
    assert DoubtReason.NOISE in OF_PIECES
    assert "--lambda auto" in run.stderr


def test_noise_between_bright_stars_is_doubted(deconv, tmp_path):
    """λ is the best for the squared error, which the stars dominate; the noise of the background grows 30 times."""
    rng, kernel = np.random.default_rng(1), make_kernel(KERNEL).double()
    sharp = torch.zeros(1, 160, 160, dtype=torch.float64)
    for y, x, light in zip(*rng.integers(0, 160, (2, 60)), 3e4 * rng.exponential(1, 60), strict=True):
        sharp[0, y, x] += light
    counts = rng.poisson(300 + deconv_cli.forward(sharp, kernel)[0].clamp_min(0).numpy())
    np.save(tmp_path / "stars.npy", counts.astype("float32"))
    words = ["invert", tmp_path / "stars.npy", "--kernel", KERNEL, "-o", tmp_path / "out.npy"]
    said = deconv(*words, expect=ExitCode.UNTRUSTWORTHY).stderr
    assert "the estimate shows mostly noise" in said
    assert "--method richardson-lucy" in said


def test_a_batch_says_in_what_light_it_restored(deconv, tmp_path):
    samples = np.random.default_rng(1).integers(0, 255, (24, 24), "uint8")
    for name in ("a.png", "b.png"):
        Image.fromarray(samples).save(tmp_path / name)
    tifffile.imwrite(tmp_path / "c.tif", samples)
    words = ["invert", tmp_path, "--kernel", "gaussian:0.6", "--lambda", "0.1", "-o", tmp_path / "out"]
    said = deconv(*words, expect=BOTH).stderr
    assert said.count("restored in linear light") == 1
    assert said.count("restored in the samples as they are stored") == 1
