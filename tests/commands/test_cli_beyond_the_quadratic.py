"""`deconv invert` with --nonnegative, --prior tv and --method richardson-lucy: files, reports, reruns and refusals."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.io import read_image

FINISHED = (ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY)
"""For data that no convolution made: whether they are doubted is not what a test is about."""

KERNEL = np.outer([1.0, 2, 3, 2, 1], [1.0, 2, 1]) / 36
WAYS = {
    "nonnegative": ["--nonnegative", "--lambda", "1e-3"],
    "tv": ["--prior", "tv"],
    "richardson-lucy": ["--method", "richardson-lucy"],
}
MINIMIZED = {
    "nonnegative": r"½‖Ax − y‖² \+ ½λσ²max‖Lx‖² over all x ≥ 0",
    "tv": r"½‖Ax − y‖² \+ [0-9.e-]+·TV\(x\)",
    "richardson-lucy": r"the Poisson divergence Σ y·log\(y/Ax\) − y \+ Ax over all x ≥ 0",
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Counts of a dark scene with a few bright blocks, and the kernel that blurred it."""
    monkeypatch.chdir(tmp_path)
    x = torch.full((1, 44, 42), 2.0)
    x[0, 10:20, 8:25] = 60
    x[0, 30:34, 30:34] = 90
    y = torch.nn.functional.conv2d(x, torch.from_numpy(KERNEL).float()[None, None])
    np.save("y.npy", 0.5 * torch.poisson(2 * y, generator=torch.Generator().manual_seed(1)).numpy())
    np.save("k.npy", KERNEL)
    return ["invert", "y.npy", "--kernel", "k.npy", "--boundary", "unknown"]


@pytest.mark.parametrize("way", WAYS)
def test_the_report_says_what_was_minimized(deconv, files, way):
    report = deconv(*files, *WAYS[way], "-o", "x.npy", "--json", "--quiet", expect=FINISHED).report
    assert re.fullmatch(MINIMIZED[way], report["objective"])
    assert (report["weight"] is None) == (way != "tv")
    assert (report["lambda"] is None) == (report["well_posedness"] is None) == (way != "nonnegative")
    assert report["solver"]["status"] in ("converged", "stopped_at_noise")
    image = read_image(Path("x.npy")).values
    if way != "tv":
        assert image.min() >= 0
    # The command that the report gives makes the same samples again.
    program, *words = shlex.split(report["rerun"])
    assert program == "deconv"
    again = deconv(words[0], "--json", "--quiet", *words[1:], expect=FINISHED).report
    assert again["objective"] == report["objective"]
    torch.testing.assert_close(read_image(Path("x.npy")).values, image, rtol=0, atol=1e-5)


def test_the_table_says_why_the_iteration_stopped_and_whether_a_gain_was_found(deconv, files):
    words = [*files, "--method", "richardson-lucy", "-o", "x.npy", "--force"]
    said = deconv(*words, "--gain", 0.5, expect=FINISHED).stderr
    assert re.search(r"\niterations +\d+: stopped before the fit followed the noise", said)
    assert "do not show a gain" not in said
    assert "the fit followed the noise, by a gain of 0.5 units a count" in said
    said = deconv(*words, "--gain", "auto", expect=FINISHED).stderr
    assert "note: the data do not show a gain, so held-out samples stop the iteration" in said


def test_the_gain_of_each_channel_is_told(deconv, files):
    shades = torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(5)).repeat_interleave(16, 1)
    light = torch.nn.functional.avg_pool2d(10 + 90 * shades.repeat_interleave(16, 2), 5, 1)
    generator = torch.Generator().manual_seed(1)
    np.save(
        "y.npy", torch.cat([gain * torch.poisson(light / gain, generator=generator) for gain in (0.5, 2.0)]).numpy()
    )
    words = [*files, "--kernel", "k.npy", "--method", "richardson-lucy", "--gain", "auto", "-o", "x.npy", "--json"]
    done = deconv(*words, expect=FINISHED)
    assert done.report["gain"] == pytest.approx([0.5, 2.0], rel=0.2)
    first, second = done.report["gain"]
    assert f"by gains of {first:.4g}, {second:.4g} units a count" in done.stderr


def test_a_photograph_is_told_from_a_measurement(deconv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sample = Path(__file__).parents[2] / "sample_images/astronaut_blurred.png"
    Image.open(sample).crop((60, 20, 156, 100)).save("y.png")
    options = ["--prior", "photo", "-o", "x.png", "--report", "x.html", "--error-map", "e.tif", "--json"]
    run = deconv("invert", "y.png", "--kernel", "gaussian:1.5", *options, expect=FINISHED)
    report, page = run.report, Path("x.html").read_text(encoding="utf-8")
    assert report["prior"] == "photo"
    assert report["solver"]["certificate"] is None
    assert "certificate" not in run.stderr
    for text in (run.stderr, page):
        words = " ".join(text.split())
        assert f"finer than about {report['finest_measured_detail']:.1f} pixels is plausible" in words
    assert "photo: detail finer than about" in " ".join(run.stderr.split())
    assert "The prior is a denoiser that learned from photographs; detail finer" in " ".join(page.split())
    assert "without reaching a minimum; judge the result by its residual" in page
    assert read_image(Path("e.tif")).values.shape == (1, 3, 80, 96)
    assert report["predicted_error"]["root_mean_square"] == report["predicted_error"]["root_mean_square_in_samples"]
