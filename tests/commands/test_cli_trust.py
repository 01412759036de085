"""A result that is not to be trusted says so in the table, in the report and to the shell, with what to do."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch.nn import functional

from deconv_cli.commands.exit_codes import ExitCode

SAMPLES = Path(__file__).parents[2] / "sample_images"


def test_a_strided_layer_ends_with_a_warning(deconv, save, tmp_path):
    weight = np.random.default_rng(1).standard_normal((8, 4, 3, 3)).astype("float32")
    x = torch.randn((1, 4, 24, 24), generator=torch.Generator().manual_seed(0))
    y = functional.conv2d(x, torch.from_numpy(weight), stride=2, padding=1)
    words = ["invert", save("y", y.numpy()), "-k", save("weight", weight), "-o", tmp_path / "x.npy", "--force"]
    done = deconv(*words, "--json", expect=ExitCode.UNTRUSTWORTHY)
    assert done.report["is_trusted"] is False
    assert [doubt["reason"] for doubt in done.report["doubts"]] == ["residual"]
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert "stride" in warning
    assert "--padding valid" in warning
    quiet = deconv(*words, "-q", expect=ExitCode.UNTRUSTWORTHY)
    assert quiet.stderr.splitlines() == [warning]


def test_a_layer_that_loses_directions_says_so(deconv, save, tmp_path):
    weight = np.random.default_rng(1).standard_normal((2, 4, 3, 3)).astype("float32")
    words = [
        "invert",
        save("y", np.ones((1, 2, 8, 8), "float32")),
        "-k",
        save("weight", weight),
        "-o",
        tmp_path / "x.npy",
    ]
    done = deconv(*words, "--json")
    assert done.report["lost_directions"] == {"n_lost": 128, "n_unknowns": 256, "is_exact": False}
    table = " ".join(deconv(*words, "--force").stderr.split())
    assert "at least 128 of 256 directions of the input leave no trace in the data" in table


def test_what_is_clipped_when_it_is_written_is_doubted(deconv, photograph, tmp_path):
    """Total variation with next to no weight, of a noisy JPEG."""
    blurred, noisy, kernel = tmp_path / "blurred.tif", tmp_path / "noisy.jpg", ["-k", "gaussian:1.5"]
    deconv("forward", photograph, *kernel, "--noise", "gaussian:8", "-o", blurred)
    deconv("forward", photograph, *kernel, "--noise", "gaussian:8", "--output-dtype", "uint8", "-o", noisy)
    words = ["invert", noisy, *kernel, "--boundary", "zero", "--prior", "tv", "--weight", "1e-4"]
    done = deconv(*words, "--output-dtype", "uint8", "-o", tmp_path / "x.png", "--json", expect=ExitCode.UNTRUSTWORTHY)
    assert "clipping" in [doubt["reason"] for doubt in done.report["doubts"]]
    assert done.report["clipping"]["share"] > 0.05
    # Samples of fractions have no range, but they are clipped where they are written as whole numbers.
    words = ["invert", blurred, *kernel, "--defaults", "picture", "--boundary", "zero", "--lambda", "1e-8"]
    fractions = deconv(*words, "-o", tmp_path / "x.tif", "--json", expect=(ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY))
    assert fractions.report["clipping"] is None
    done = deconv(*words, "--output-dtype", "uint8", "-o", tmp_path / "z.png", "--json", expect=ExitCode.UNTRUSTWORTHY)
    assert "clipping" in [doubt["reason"] for doubt in done.report["doubts"]]


def test_a_wrong_kernel_is_trusted_nowhere(deconv, tmp_path):
    options = ["--padding", "valid", "--noise", "gaussian:2", "-o", tmp_path / "y.png"]
    deconv("forward", SAMPLES / "camera.png", "-k", "motion:15@0", *options)
    words = ["invert", tmp_path / "y.png", "-k", "motion:15@90", "--lambda", "1e-2", "--padding", "same"]
    outputs = ["--boundary", "unknown", "-o", tmp_path / "x.tif", "--trust-mask", tmp_path / "trust.png"]
    done = deconv(*words, *outputs, "--report", tmp_path / "x.html", expect=ExitCode.UNTRUSTWORTHY)
    assert "the kernel is probably wrong" in done.stderr
    assert "everywhere" not in done.stderr
    with Image.open(tmp_path / "trust.png") as mask:
        assert not np.array(mask).any()
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "Do not use this result as it is: the blur in the input was probably another one." in page
    assert "the kernel is probably wrong" in page


def test_the_boundaries_of_a_singular_kernel_are_not_called_well_posed(deconv, save):
    table = deconv("inspect", save("difference", [[1.0, -1.0]]), "--as", "kernel").stdout
    assert "condition infinite" in table
    assert "well posed" not in table.replace("not well posed", "")


@pytest.mark.parametrize(("dtype", "is_full"), [("uint16", True), ("int32", False), ("uint32", False)])
def test_only_samples_at_the_white_of_their_file_are_full(deconv, tmp_path, dtype, is_full):
    """16 bits without a sign are held by 32, but counts of 32 bits have no white."""
    counts = np.random.default_rng(0).integers(30_000, 50_000, (40, 40))
    counts[10:20, 10:20] = 65_535
    tifffile.imwrite(tmp_path / "a.tif", counts.astype(dtype))
    options = ["--lambda", "1e-3", "--light", "stored", "--json", "-o", tmp_path / "x.npy"]
    report = deconv("invert", tmp_path / "a.tif", "-k", "gaussian:1", *options, expect=tuple(ExitCode)).report
    assert any("samples are saturated" in note for note in report["notes"]) == is_full
