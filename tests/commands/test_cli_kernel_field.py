"""A kernel that varies over the frame, at the prompt."""

import re

import pytest
import torch

import deconv_cli
from deconv_cli.commands.exit_codes import ExitCode


@pytest.fixture
def field(tmp_path):
    """Gaussian blur that grows to the right."""
    distance = (torch.arange(7) - 3).float().square()
    taps = torch.stack([torch.exp(-(distance[:, None] + distance) / (2 * width**2)) for width in (0.6, 0.9, 1.2)])
    taps = taps / taps.sum(dim=(1, 2), keepdim=True)
    path = tmp_path / "field.safetensors"
    deconv_cli.save_kernel_field(deconv_cli.KernelField(taps[None], (0.5,), (0.2, 0.5, 0.8)), path)
    return path


def test_a_picture_is_blurred_and_restored(deconv, photograph, field, tmp_path, values):
    blurred, restored = tmp_path / "blurred.tif", tmp_path / "restored.tif"
    made = deconv("forward", photograph, "--kernel", field, "-o", blurred, "--boundary", "reflect", "--json")
    assert made.report["kernel"]["shape"] == [1, 3, 7, 7]
    assert made.report["kernel"]["field"]["columns"] == pytest.approx([0.2, 0.5, 0.8])
    assert made.report["kernel"]["dc_gain"][0] == pytest.approx([1, 1, 1], abs=1e-5)
    words = ["invert", blurred, "--kernel", field, "-o", restored, "--lambda", "1e-4"]
    run = deconv(*words)
    assert "varies over 1×3 places of the frame, sums 1 to 1" in run.stderr
    assert "varying, converged" in run.stderr
    x, y = values(photograph), values(blurred)
    assert float((values(restored) - x).norm()) < 0.6 * float((y - x).norm())
    report = deconv(*words, "--json", "--force").report
    assert report["method"] == "varying"
    assert report["well_posedness"] is None
    assert "--method=varying" in report["rerun"]


@pytest.mark.parametrize("words", [[], ["--as", "kernel"]])
def test_inspect_describes_it_in_a_sentence(deconv, field, words):
    run = deconv("inspect", field, *words)
    assert "σmax" not in run.stderr  # of its tensors one by one
    assert (
        "a kernel that varies over the frame: 1×3 kernels of 7×7 taps, at 0.5 of its height and 0.2, 0.5, 0.8"
        in run.stderr
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["invert", "{photograph}", "--report", "page.html"], "the error is predicted.*only for a single kernel"),
        (["invert", "{photograph}", "--method", "strip"], "varies over the frame"),
        (["factor", "--size", "40,48"], "taken by forward and invert alone"),
        (["forward", "{photograph}", "--clean-kernel"], "--clean-kernel"),
    ],
)
def test_what_is_for_single_kernels_is_refused(deconv, photograph, field, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    words = [word.format(photograph=photograph) for word in words]
    run = deconv(*words, "--kernel", field, "-o", tmp_path / "out.safetensors", expect=ExitCode.USAGE)
    assert len(run.errors) == 1
    assert re.search(message, run.errors[0])
