"""`deconv kernel fit`: the kernel between two files, and its error bars."""

from __future__ import annotations

from pathlib import Path

import bad_losses
import numpy as np
import pytest
import torch

import deconv_cli
from deconv_cli.commands import kernel_fit, kernel_output
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.errors import FileAccessError


def test_a_pair_of_tensors_gives_the_kernel_that_invert_takes(deconv, save, tmp_path):
    random = np.random.default_rng(0)
    x, kernel = save("x", random.random((1, 20, 22))), save("k", random.random((3, 4)))
    deconv("forward", x, "-k", kernel, "-o", tmp_path / "y.npy", "--output-dtype", "float64", "--dtype", "float64")
    done = deconv("kernel", "fit", x, tmp_path / "y.npy", "--size", "3,4", "-o", tmp_path / "fit.npy", "--json",
                  "--boundary", "zero", "--errors", tmp_path / "bars.npy")  # fmt: skip
    found = np.load(tmp_path / "fit.npy")
    assert np.abs(found - np.load(kernel)).max() < 1e-6
    assert np.load(tmp_path / "bars.npy").shape == (3, 4)
    assert done.report["held_out_residual"] < 1e-6
    assert done.report["samples"] == 440
    library = deconv_cli.fit_kernel(
        [tuple(torch.from_numpy(np.load(path)) for path in (x, tmp_path / "y.npy"))], (3, 4), boundary="zero"
    )
    assert np.array_equal(library.taps.float().numpy(), found)
    deconv("invert", tmp_path / "y.npy", "-k", tmp_path / "fit.npy", "-o", tmp_path / "back.npy")


def test_each_picture_is_read_once(deconv, save, monkeypatch):
    x, y = (save(name, np.random.default_rng(0).random(300)) for name in "xy")
    read, names = deconv_cli.io.read_image, []
    monkeypatch.setattr(
        "deconv_cli.io.read_image", lambda path, **given: (names.append(path.stem), read(path, **given))[1]
    )
    deconv("kernel", "fit", x, y, "--size", "3", "--boundary", "zero")
    assert names == ["x", "y"]


def test_a_kernel_that_cannot_be_written_leaves_no_error_bars(refuses, save, tmp_path, monkeypatch):
    def fail(path, *_):
        if path.name == "k.npy":
            raise FileAccessError("the disk is full.")
        path.touch()

    for module in (kernel_fit, kernel_output):
        monkeypatch.setattr(module, "write_kernel", fail)
    x = save("x", np.random.default_rng(0).random((1, 20, 22)))
    y = save("y", np.random.default_rng(1).random((1, 20, 22)))
    refuses("kernel", "fit", x, y, "--size", "3,3", "-o", tmp_path / "k.npy", "--errors", tmp_path / "bars.npy",
            code=ExitCode.FAILURE, says="disk is full")  # fmt: skip


def test_pictures_are_fitted_in_light(deconv, samples_folder, tmp_path):
    """The sample was blurred in linear light by a kernel that is known, with noise and rounding."""
    sharp, blurred = samples_folder / "camera.png", samples_folder / "camera_blurred.png"
    done = deconv("kernel", "fit", sharp, blurred, "--size", "15", "--nonnegative", "--unit-sum", "--json",
                  "-o", tmp_path / "k.safetensors")  # fmt: skip
    assert "in linear light" in done.report["light"]
    assert done.report["sum"] == pytest.approx(1.0, abs=1e-6)


def test_a_kernel_that_explains_little_is_doubted_even_quietly(deconv, samples_folder, tmp_path):
    sharp, blurred = samples_folder / "camera.png", samples_folder / "camera_blurred.png"
    for first, second, says in ((sharp, blurred, "beyond its outermost taps"), (blurred, sharp, "sharpens")):
        done = deconv("kernel", "fit", first, second, "--size", "7,7", "-q", "-o", tmp_path / f"{first.stem}.npy",
                      expect=ExitCode.UNTRUSTWORTHY)  # fmt: skip
        assert done.stderr.startswith("warning: the kernel ")
        assert says in done.stderr
        assert (tmp_path / f"{first.stem}.npy").exists()


def test_refusals(refuses, save, tmp_path):
    x = save("x", np.random.default_rng(0).random((1, 9, 9)))
    refuses("kernel", "fit", x, "--size", "3,3", code=ExitCode.USAGE, says="come in pairs")
    refuses("kernel", "fit", x, x, "--size", "3,3", code=ExitCode.USAGE, says="is both the sharp and the blurred")
    y = save("y", np.random.default_rng(1).random((1, 9, 9)))
    said = refuses(
        "kernel", "fit", x, y, "--size", "30,3", code=ExitCode.INPUT_REFUSED, says="does not fit into images"
    )
    assert "padding" not in said
    refuses("kernel", "fit", x, y, "--size", "3,a", code=ExitCode.USAGE, says="N, H,W or D,H,W")
    refuses("kernel", "fit", x, y, "--size", "3,3", "-o", tmp_path / "k.png", code=ExitCode.USAGE, says="is written as")
    refuses("kernel", "fit", x, y, "--size", "3,3", "-o", tmp_path / "k.npy", "--errors", tmp_path / "k.npy",
            code=ExitCode.USAGE, says="which this run writes too")  # fmt: skip


def test_another_loss_gives_the_kernel_of_the_library(deconv, refuses, save, tmp_path):
    random = np.random.default_rng(0)
    x, kernel = save("x", random.random((1, 26, 24))), save("k", random.random((3, 4)))
    deconv("forward", x, "-k", kernel, "-o", tmp_path / "y.npy", "--output-dtype", "float64", "--dtype", "float64")
    y = np.load(tmp_path / "y.npy")
    y[0, ::5, ::5] += 3
    np.save(tmp_path / "y.npy", y)
    words = ["kernel", "fit", x, tmp_path / "y.npy", "--size", "3,4"]
    done = deconv(*words, "--loss", "huber:0.05", "-o", tmp_path / "found.npy", "--json")
    assert np.abs(np.load(tmp_path / "found.npy") - np.load(kernel)).max() < 0.02
    assert done.report["loss"] == "huber:0.05"
    assert done.report["certificate"] < 1e-6
    assert done.report["error"] is None
    assert "huber:0.05, " in done.stderr
    pair = tuple(torch.from_numpy(np.load(path)) for path in (x, tmp_path / "y.npy"))
    library = deconv_cli.fit_kernel([pair], (3, 4), loss="huber:0.05")
    assert np.array_equal(library.taps.float().numpy(), np.load(tmp_path / "found.npy"))
    refuses(*words, "--loss", "l3", code=ExitCode.USAGE, says="loss must be one of squared")
    refuses(*words, "--loss", "l1", "--errors", tmp_path / "e.npy", code=ExitCode.USAGE, says="leave one out")
    said = refuses(*words, "--loss", f"{bad_losses.__file__}:detached", code=ExitCode.FAULT_FOUND, says="DETACHED")
    assert "bad_losses.py:9" in said


def test_folders_are_matched_by_name(deconv, refuses, tmp_path):
    random = np.random.default_rng(0)
    for folder in ("sharp", "blurred", "other"):
        (tmp_path / folder).mkdir()
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / "sharp" / name, random.random((1, 20, 20)))
    np.save(tmp_path / "other" / "a.npy", random.random((1, 20, 20)))
    deconv("forward", tmp_path / "sharp", "-k", "gaussian:1", "-o", tmp_path / "blurred")
    words = ("--size", "7,7", "--json")
    done = deconv("kernel", "fit", tmp_path / "sharp", tmp_path / "blurred", *words).report
    assert [Path(path).name for path in done["input"]] == ["a.npy", "a.npy", "b.npy", "b.npy"]
    refuses("kernel", "fit", tmp_path / "sharp", tmp_path / "other", *words, code=ExitCode.USAGE,
            says="only one of them has 'b'")  # fmt: skip
