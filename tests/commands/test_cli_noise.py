"""`deconv forward --noise` gives the same noise for the same seed; `deconv invert` finds the noise of a JPEG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.io import read_image


@pytest.fixture
def point(save):
    """A kernel that changes nothing."""
    return save("point", [[1.0]])


@pytest.fixture
def noisy(deconv, point, tmp_path, values):
    def run(source, *options):
        deconv("forward", source, "-k", point, "-o", tmp_path / "noisy.npy", "--force", "-q", *options)
        return values(tmp_path / "noisy.npy")

    return run


def test_the_same_seed_gives_the_same_noise(noisy, photograph):
    options = ["--noise", "gaussian:2", "--seed"]
    first = noisy(photograph, *options, "5")
    assert torch.equal(noisy(photograph, *options, "5"), first)
    assert not torch.equal(noisy(photograph, *options, "6"), first)
    assert torch.equal(noisy(photograph, *options, "0"), noisy(photograph, "--noise", "gaussian:2"))


KERNEL = "gaussian:1.5"


@pytest.fixture
def jpeg(deconv, tmp_path):
    """A piece of a sample photograph, blurred, noised and compressed."""
    scene = read_image(Path(__file__).parents[2] / "sample_images" / "camera.png").values[0, 0, 40:216, 60:236]
    np.save(tmp_path / "scene.npy", scene.float().numpy())
    options = ["--padding", "valid", "--noise", "gaussian:3", "-o", tmp_path / "blurred.npy"]
    deconv("forward", tmp_path / "scene.npy", "-k", KERNEL, *options)
    path = tmp_path / "blurred.jpg"
    Image.fromarray(np.load(tmp_path / "blurred.npy").clip(0, 255).astype(np.uint8)).save(path, quality=80)
    return path


def test_the_noise_of_a_jpeg_is_found_and_said(deconv, jpeg, tmp_path):
    words = ["invert", jpeg, "-k", KERNEL, "-o", tmp_path / "a.tif", "--force", "--prior", "quadratic"]
    found = deconv(*words, "--json").report
    (noise,) = found["noise_model"]
    assert noise["sigma"] == pytest.approx(3, rel=0.25)
    assert noise["spectrum"][1] > 5 * noise["spectrum"][10]
    assert "less power in fine detail" in noise["sentence"]
    by_gcv = ("--noise", "white", "--lambda-rule", "gcv")  # which the whitest residual would correct by default
    white = deconv(*words, "--json", *by_gcv, expect=ExitCode.UNTRUSTWORTHY).report
    assert white["noise_model"][0]["spectrum"] == []
    assert white["lambda"] < 0.1 * found["lambda"]
