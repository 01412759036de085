"""`deconv kernel from-beads`: beads in a file to a point-spread function in a file."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import torch
from bead_scenes import scene

import deconv_cli
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.io import read_image


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A 16-bit picture of beads with a pixel of 0.1 µm."""
    path = tmp_path_factory.mktemp("beads") / "beads.tif"
    samples = scene((160, 170), (1.6, 2.1), 40, counts=1500).numpy().astype(np.uint16)
    tifffile.imwrite(path, samples, imagej=True, resolution=(10.0, 10.0), metadata={"axes": "YX", "unit": "um"})
    return path


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """A stack of beads with planes 0.2 µm apart."""
    path = tmp_path_factory.mktemp("beads") / "stack.tif"
    samples = scene((36, 80, 80), (2.4, 1.5, 1.5), 40, counts=1500).numpy().astype(np.uint16)
    tifffile.imwrite(
        path, samples, imagej=True, resolution=(10.0, 10.0), metadata={"axes": "ZYX", "unit": "um", "spacing": 0.2}
    )
    return path


def test_a_picture_of_beads(deconv, picture, tmp_path):
    target = tmp_path / "psf.tif"
    done = deconv("kernel", "from-beads", picture, "-o", target, "--json", "--show")
    report = done.report
    assert report["beads"]["used"] == 16
    assert report["spacing"] == pytest.approx([0.1, 0.1])
    assert "µm" in done.stderr
    assert "of a bead's light stands out of the noise" in done.stderr
    assert "draws on a terminal" in done.stderr
    library = deconv_cli.psf_from_beads(read_image(picture).values[0, 0], white=65535.0, spacing=(0.1, 0.1))
    written = tifffile.imread(target)
    assert np.abs(written - library.psf.float().numpy()).max() < 1e-7
    assert report["fwhm_samples"] == pytest.approx(list(library.widths))
    # A camera shows the point-spread function; the taps of a correlation are the same turned.
    deconv("kernel", "from-beads", picture, "-o", tmp_path / "psf.npy", "-q")
    assert np.array_equal(np.load(tmp_path / "psf.npy"), written[::-1, ::-1])
    for kernel in ("psf.tif", "psf.npy"):
        deconv("forward", picture, "-k", tmp_path / kernel, "-o", tmp_path / f"{kernel}.out.npy", "-q")
    first, second = (np.load(tmp_path / f"{kernel}.out.npy") for kernel in ("psf.tif", "psf.npy"))
    assert np.abs(first - second).max() < 1e-3 * np.abs(second).max()


def test_a_stack_keeps_its_spacing(deconv, stack, tmp_path):
    target = tmp_path / "psf.tif"
    done = deconv("kernel", "from-beads", stack, "-o", target, "--json", "--bead-diameter", 0.1)
    assert done.report["spacing"] == pytest.approx([0.2, 0.1, 0.1])
    assert len(done.report["shape"]) == 3
    assert read_image(target).spanned_by(3).spacing == pytest.approx((0.2, 0.1, 0.1))
    assert done.report["fwhm_samples"][0] > done.report["fwhm_samples"][1]


def test_channels_are_chosen(deconv, refuses, save, tmp_path):
    both = torch.stack([scene((90, 90), (1.5, 1.5), 45, counts=1500), scene((90, 90), (2.0, 2.0), 45, counts=1500)])
    path = save("both", both.numpy())
    refuses("kernel", "from-beads", path, code=ExitCode.USAGE, says="holds 2 channels; choose one with --channel N")
    refuses("kernel", "from-beads", path, "--channel", 2, code=ExitCode.USAGE, says="--channel must be from 0 to 1")
    widths = [deconv("kernel", "from-beads", path, "--channel", c, "--json").report["fwhm_samples"][0] for c in (0, 1)]
    assert widths[0] < 0.9 * widths[1]


def test_refusals(refuses, picture, tmp_path, save):
    refuses("kernel", "from-beads", picture, "--size", "9", code=ExitCode.USAGE, says="--size must hold 2 numbers")
    refuses(
        "kernel", "from-beads", picture, "-o", tmp_path / "psf.png", code=ExitCode.USAGE, says="fractions are written"
    )
    empty = save("empty", np.random.default_rng(0).normal(size=(60, 60)))
    refuses("kernel", "from-beads", empty, code=ExitCode.UNTRUSTWORTHY, says="no bead is fit")
