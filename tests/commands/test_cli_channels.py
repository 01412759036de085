"""Kernels, λ and pictures of several channels at the prompt."""

import numpy as np
import pytest
import tifffile
import torch

from deconv_cli.commands.exit_codes import ExitCode

SIGMAS = (0.8, 1.2, 1.6)


@pytest.fixture
def kernels(tmp_path):
    """A kernel for each of three channels: one file, and a file for each."""
    places = np.arange(9) - 4
    planes = [np.exp(-(places[:, None] ** 2 + (places - s) ** 2) / (2 * s**2)) for s in SIGMAS]
    taps = np.stack([plane / plane.sum() for plane in planes]).astype("float32")
    tifffile.imwrite(tmp_path / "psf.tif", taps, imagej=True, metadata={"axes": "CYX"})
    for name, plane in zip("rgb", taps, strict=True):
        tifffile.imwrite(tmp_path / f"{name}.tif", plane)
    return tmp_path / "psf.tif", [word for name in "rgb" for word in ("--kernel", tmp_path / f"{name}.tif")], taps


def test_each_channel_is_blurred_and_restored_by_its_kernel(deconv, photograph, kernels, tmp_path, values, blur):
    one, several, taps = kernels
    options = ["--boundary", "reflect", "--light", "stored", "--json"]
    made = deconv("forward", photograph, "--kernel", one, "-o", tmp_path / "blurred.tif", *options)
    assert made.report["kernel"]["shape"] == [3, 9, 9]
    assert made.report["kernel"]["dc_gain"] == pytest.approx([1, 1, 1], abs=1e-5)
    x = values(photograph)
    flipped = torch.from_numpy(taps).double().flip(-1, -2)
    expected = torch.cat([blur(x[:, [c]], flipped[c], boundary="reflect") for c in range(3)], 1)
    torch.testing.assert_close(values(tmp_path / "blurred.tif"), expected, rtol=1e-4, atol=1e-3)
    again = deconv("forward", photograph, *several, "-o", tmp_path / "c.tif", *options)
    assert torch.equal(values(tmp_path / "c.tif"), values(tmp_path / "blurred.tif"))
    assert again.report["rerun"].count("--kernel=") == 3
    words = ["invert", tmp_path / "blurred.tif", "--kernel", one, "-o", tmp_path / "out.tif", "--lambda", "1e-7"]
    run = deconv(*words, "--defaults", "tensor", "--json")
    assert float((values(tmp_path / "out.tif") - x).norm() / x.norm()) < 0.6 * float((expected - x).norm() / x.norm())
    assert len(run.report["channels"]) == 3


def test_lambda_of_each_channel_is_listed_and_rerun(deconv, photograph, kernels, tmp_path, values):
    _, several, _ = kernels
    blurred = tmp_path / "blurred.tif"
    deconv("forward", photograph, *several, "-o", blurred)
    image = tifffile.imread(blurred)
    rng = np.random.default_rng(0)
    noise = np.array([0.1, 3, 20])[:, None, None] * rng.standard_normal((3, 40, 48))
    tifffile.imwrite(tmp_path / "n.tif", (np.moveaxis(image, -1, 0) + noise).astype("float32"), imagej=True)
    page = tmp_path / "page.html"
    words = ["invert", tmp_path / "n.tif", "--axes", "CYX", "-o", tmp_path / "out.tif"]
    run = deconv(*words, *several, "--report", page, "--json")
    lams = run.report["lambda"]
    assert len(set(lams)) == 3
    assert [channel["lambda"] for channel in run.report["channels"]] == lams
    assert run.report["diagnosis"]["channel"] in (0, 1, 2)
    assert f"--lambda={','.join(map(repr, lams))}" in run.report["rerun"]
    first = values(tmp_path / "out.tif")
    import shlex

    deconv(*shlex.split(run.report["rerun"])[1:])
    assert torch.equal(values(tmp_path / "out.tif"), first)
    typed = deconv(*words, *several, "--force", "--lambda", "0.1,0.02,0.3")
    assert "0.1, 0.02, 0.3, penalty" in typed.stderr
    assert "λ = " in page.read_text()


def test_several_kernels_are_of_one_channel_each(refuses, photograph, kernels, tmp_path):
    one, several, _ = kernels
    out = ["-o", tmp_path / "out.tif"]
    says = ["several kernels must each", "(3, 9, 9)"]
    refuses("invert", photograph, "--kernel", one, *several, *out, code=ExitCode.INPUT_REFUSED, says=says)
    says = "lambda must be auto, zero or a positive number, or one for each channel, but is 'auto,1'"
    refuses("invert", photograph, *several, *out, "--lambda", "auto,1", code=ExitCode.USAGE, says=says)


def test_what_a_kernel_means_on_a_picture_is_said_once(deconv, gray, save, tmp_path):
    kernel, blurred = save("k", 2 * np.outer([1, 2, 1], [3, 2, 1]).astype("float32")), tmp_path / "blurred.tif"
    said = deconv("forward", gray, "--kernel", kernel, "-o", blurred).stderr
    for part in ("kernel is not symmetric", "--convention convolution", "add up to 48", "--normalize divides"):
        assert part in said
    back = ["invert", blurred, "--kernel", kernel, "-o", tmp_path / "out.tif", "--lambda", "0.1"]
    assert "not symmetric" not in deconv(*back).stderr


def test_a_kernel_that_spoils_a_picture_is_refused_before_the_output_is_looked_at(deconv, refuses, gray, tmp_path):
    places = np.arange(64) - 31
    bead = 4000 * np.exp(-((places[:, None] - 4) ** 2 + (places - 3) ** 2) / 8) + 60
    tifffile.imwrite(tmp_path / "bead.tif", bead.round().astype("uint16"))
    output = tmp_path / "out.tif"
    output.touch()
    words = ["invert", gray, "-o", output, "--lambda", "0.1", "--kernel"]
    says = "background is 71 % of its sum and its center lies 3.6 pixels off its middle; --clean-kernel corrects that"
    refuses(*words, tmp_path / "bead.tif", code=ExitCode.USAGE, says=says)
    refuses(*words, "disk:900", code=ExitCode.INPUT_REFUSED, says="more than twice as large as the picture")
    for choice in ("--clean-kernel", "--no-clean-kernel"):
        # Under padding valid the kernel is smaller than the image.
        run = deconv(*words, tmp_path / "bead.tif", choice, "--padding", "valid", "--force", "--json",
                     expect=(ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY))  # fmt: skip
        assert choice in run.report["rerun"]


def test_how_to_get_a_kernel(refuses, gray, tmp_path):
    says = ["needs the kernel", "point of light", "gaussian:1.5"]
    assert len(refuses("invert", gray, "-o", tmp_path / "out.tif", code=ExitCode.USAGE, says=says)) < 240
