"""`deconv kernel make`, and layers named behind a colon."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile

from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.kernels.sources.formula import make_kernel


@pytest.mark.parametrize("words", ["disk:2.2", "gaussian:1*motion:5@30", "gaussian3d:1@1.5"])
def test_a_formula_is_written(deconv, tmp_path, words):
    done = deconv("kernel", "make", words, "-o", tmp_path / "k.npy", "--json", "--show")
    assert np.array_equal(np.load(tmp_path / "k.npy"), make_kernel(words).float().numpy())
    assert done.report["sum"] == pytest.approx(1.0)
    assert "draws on a terminal" in done.stderr
    record = json.loads((tmp_path / "k.npy.json").read_text())
    assert (record["command"], record["kernel"]) == ("kernel make", words)
    assert record["output"]["samples_sha256"]


def test_refusals(refuses, tmp_path):
    refuses("kernel", "make", "disk", code=ExitCode.USAGE, says="is written disk:RADIUS")
    refuses("kernel", "make", "gausian:3", code=ExitCode.USAGE, says="perhaps gaussian was meant")
    (tmp_path / "k.npy.json").write_text("mine")
    refuses("kernel", "make", "disk:2", "-o", tmp_path / "k.npy", code=ExitCode.USAGE, says="exists already")
    refuses("kernel", "make", "disk:2", "-o", tmp_path / "k.png", code=ExitCode.USAGE, says="a kernel is written as")


def test_a_kernel_with_tails_says_so_and_takes_a_size(deconv, tmp_path):
    done = deconv("kernel", "make", "airy:1", "-o", tmp_path / "k.npy")
    assert "a larger --size holds more of them" in done.stderr
    error = json.loads((tmp_path / "k.npy.json").read_text())["transform_error"]
    assert f"the edge of 33×33 taps, which makes the transform wrong by {error:.2g}" in done.stderr
    done = deconv("kernel", "make", "airy:1", "--size", "201", "-o", tmp_path / "wide.npy", "--json")
    assert np.load(tmp_path / "wide.npy").shape == (201, 201)
    assert done.report["transform_error"] < 1e-3
    assert "larger --size" not in done.stderr


def test_lengths_in_units(deconv, refuses, tmp_path):
    deconv("kernel", "make", "gaussian:0.3um*shift:0.2@0", "--spacing", "0.2,0.2", "-o", tmp_path / "k.npy", "-q")
    expected = make_kernel("gaussian:1.5*shift:0.2@0").float().numpy()
    np.testing.assert_allclose(np.load(tmp_path / "k.npy"), expected, atol=1e-7)
    refuses("kernel", "make", "gaussian:0.3um", code=ExitCode.USAGE, says="as --spacing 0.2")
    refuses("kernel", "make", "gaussian:2", "--spacing", "1,1", code=ExitCode.USAGE, says="leave it out")


def test_the_kernel_of_a_signal(deconv, tmp_path):
    deconv("kernel", "make", "box:3", "--signal", "-o", tmp_path / "k.npy", "-q")
    taps = make_kernel("box:3", dimensions=1)
    assert np.array_equal(np.load(tmp_path / "k.npy"), taps.float().numpy())
    signal = np.random.default_rng(0).random((1, 40))
    np.save(tmp_path / "x.npy", signal)
    deconv("forward", tmp_path / "x.npy", "-k", "box:3", "--dimensions", "1", "-o", tmp_path / "y.npy", "-q")
    expected = np.convolve(np.pad(signal[0], len(taps) // 2), taps.numpy(), "valid")
    np.testing.assert_allclose(np.load(tmp_path / "y.npy")[0], expected, atol=1e-6)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
def test_signals_stay_signals(deconv, save, tmp_path, suffix):
    """What `forward` says of the axes is read again, and an array of one axis is a signal by itself."""
    blurred, back = tmp_path / f"y{suffix}", tmp_path / f"z{suffix}"
    lines, line = save("x", np.random.default_rng(0).random((2, 40))), save("l", np.random.default_rng(1).random(40))
    for source, words in ((lines, ["--dimensions", "1"]), (line, [])):
        deconv("forward", source, "-k", "gaussian:1", "-o", blurred, "-q", "--force", *words)
        done = deconv("invert", blurred, "-k", "gaussian:1", "-o", back, "--json", "--force").report
        assert done["dimensions"] == 1
        assert done["kernel"]["shape"] == [len(make_kernel("gaussian:1", dimensions=1))]
        assert done["inputs"][0]["axes"] == done["output"]["axes"] == ("CX" if words else "X")
        assert deconv("inspect", back, "--json").report["files"][0]["made_by"]


def test_a_kernel_takes_its_units_from_the_picture(deconv, refuses, tmp_path):
    samples = np.random.default_rng(0).random((1, 16, 17)).astype(np.float32)
    metadata = {"axes": "ZYX", "PhysicalSizeX": 0.2, "PhysicalSizeY": 0.2, "PhysicalSizeZ": 0.5}
    tifffile.imwrite(tmp_path / "s.ome.tif", np.repeat(samples, 4, 0), ome=True, metadata=metadata)
    for words, target in (("gaussian3d:0.5um@200nm", "a.tif"), ("gaussian3d:1@1", "b.tif")):
        deconv("forward", tmp_path / "s.ome.tif", "-k", words, "-o", tmp_path / target, "-q")
    np.testing.assert_allclose(tifffile.imread(tmp_path / "a.tif"), tifffile.imread(tmp_path / "b.tif"), atol=1e-6)
    np.save(tmp_path / "x.npy", samples)
    refuses("forward", tmp_path / "x.npy", "-k", "gaussian:1um", "-o", tmp_path / "y.npy", code=ExitCode.USAGE,
            says="the distance of the samples is not known")  # fmt: skip


def test_a_layer_behind_a_colon(deconv, refuses, samples_folder, save, tmp_path):
    model = samples_folder / "pnet.pt"
    x = save("x", np.random.default_rng(0).random((3, 9, 9)).astype(np.float32))
    for words, target in (([f"{model}:conv1"], "a.npy"), ([model, "--layer", "conv1"], "b.npy")):
        deconv("forward", x, "-k", *words, "--padding", "valid", "-o", tmp_path / target, "-q")
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))
    refuses("forward", x, "-k", f"{model}:conv1", "--layer", "conv2", "-o", tmp_path / "c.npy", code=ExitCode.USAGE,
            says="names the layer 'conv1' already")  # fmt: skip
    refuses("forward", x, "-k", f"{model}:conv9", "-o", tmp_path / "c.npy", code=ExitCode.USAGE, says="no layer named")
