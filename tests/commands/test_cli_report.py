"""The report of `deconv invert --json`, its record in the file, and the command that makes the same samples again."""

import hashlib
import math
import shlex

import numpy as np
import pytest
import tifffile
import torch
from safetensors.torch import load_file

from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.io import read_image

FINISHED = (ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY)
"""For data that no convolution made: whether they are doubted is not what a test is about."""

KEYS = {
    "schema", "command", "inputs", "kernel", "boundary", "boundary_reason", "padding", "method", "method_reason",
    "lambda", "penalty", "residual", "border", "conditioning", "solver", "output", "time_s", "peak_memory_bytes",
    "device", "dtype", "versions", "rerun",
}  # fmt: skip


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_key_of_the_report_is_there(deconv, photograph, gentle, tmp_path):
    output = tmp_path / "restored.tif"
    done = deconv("invert", photograph, "--kernel", gentle, "-o", output, "--json", "--prior", "quadratic")
    report = done.report
    assert report.keys() >= KEYS
    assert (report["schema"], report["command"]) == (2, "invert")
    assert report["inputs"] == [
        {
            "path": str(photograph),
            "shape": [40, 48, 3],
            "axes": "YXS",
            "dtype": "uint8",
            "sha256": digest(photograph),
        }
    ]
    kernel = report["kernel"]
    assert (kernel["shape"], kernel["convention"], kernel["sha256"]) == ([5, 4], "correlation", digest(gentle))
    assert kernel["dc_gain"] == pytest.approx(np.load(gentle).sum())
    assert report["residual"].keys() >= {"relative", "absolute", "per_channel"}
    assert len(report["residual"]["per_channel"]) == 3
    assert report["conditioning"].keys() >= {"sigma_max", "sigma_min", "condition"}
    assert report["solver"].keys() >= {"status", "iterations", "certificate"}
    samples = hashlib.sha256(tifffile.imread(output).astype("<f4").tobytes()).hexdigest()
    assert report["output"] == {
        "path": str(output),
        "shape": [40, 48, 3],
        "axes": "YXS",
        "dtype": "float32",
        "samples_sha256": samples,
    }
    assert 0 < report["time_s"] < 60
    assert 2**24 < report["peak_memory_bytes"] < 2**40
    assert report["device"].partition(":")[0] in ("cpu", "cuda")
    assert report["dtype"] == "float32"
    assert report["versions"]["torch"] == torch.__version__
    assert all(report[reason] for reason in ("boundary_reason", "method_reason", "lambda_reason"))
    assert all(math.isfinite(band["residual_rms"]) for band in report["border"])
    assert report["rerun"].startswith("deconv invert ")


def test_the_report_of_forward(deconv, photograph, gentle, tmp_path):
    options = ["--padding", "2,1", "--boundary", "reflect", "--noise", "gaussian:2.5", "--seed", "7"]
    report = deconv("forward", photograph, "--kernel", gentle, "-o", tmp_path / "y.tif", *options, "--json").report
    expected = {"schema", "command", "inputs", "kernel", "boundary", "padding", "noise", "seed", "output", "rerun"}
    assert report.keys() >= expected | {"time_s", "peak_memory_bytes", "device", "dtype", "versions"}
    assert (report["boundary"], report["padding"]) == ("reflect", "2,1")
    assert (report["noise"], report["seed"]) == ("gaussian:2.5", 7)
    assert report["inputs"][0]["sha256"] == digest(photograph)
    assert report["output"]["shape"] == [40, 47, 3]
    words = ["--noise", "gaussian:1", "-o", tmp_path / "z.tif", "--json"]
    assert deconv("forward", photograph, "--kernel", gentle, *words).report["seed"] == 0


RERUNS = {
    "forward with noise": ["forward", "photograph.png", "--noise", "gaussian:3", "--seed", "11", "-o", "out.tif"],
    "forward, all said": [
        *("forward", "photograph.png", "--padding", "3,2", "--boundary", "symmetric", "--dtype", "float64"),
        *("--output-dtype", "uint16", "--convention", "convolution", "--normalize", "-o", "out.png"),
    ],
    "invert as it comes": ["invert", "photograph.png", "-o", "out.tif"],
    "invert, all said": [
        *("invert", "photograph.png", "--boundary", "reflect", "--lambda", "0.0123", "--penalty", "laplacian"),
        *("--tolerance", "1e-4", "--max-iterations", "50", "--dtype", "float64", "--output-dtype", "float64"),
        *("--padding", "1", "-o", "out.tif"),
    ],
    "invert, one of several": [
        *("invert", "several.npz", "--tensor", "second", "--axes", "YXC", "--no-normalize", "-o", "out.safetensors"),
    ],
}


@pytest.mark.parametrize("words", RERUNS.values(), ids=RERUNS.keys())
def test_rerun_gives_the_same_samples_again(deconv, photograph, gentle, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(4)
    np.savez("several.npz", first=rng.random((5, 5)), second=rng.random((20, 18, 2)))
    report = deconv(words[0], "--kernel", gentle.name, "--json", *words[1:], expect=FINISHED).report
    output = tmp_path / report["output"]["path"]
    first, record = read_image(output), output.with_name(f"{output.name}.json")
    output.unlink()
    record.unlink(missing_ok=True)
    program, *again = shlex.split(report["rerun"])
    assert program == "deconv"
    deconv(*again, expect=FINISHED)
    second = read_image(output)
    assert (second.dtype, second.shape, second.axes) == (first.dtype, first.shape, first.axes)
    assert torch.equal(second.values, first.values)
    if output.suffix != ".png":  # which keeps no names of files
        assert second.record["rerun"] == report["rerun"]
    deconv(*again)  # it may be run once more, over its own result


def test_rerun_of_a_layer_and_of_a_solve_that_was_cut_short(deconv, samples_folder, tmp_path):
    output = tmp_path / "out.npy"
    layers = load_file(samples_folder / "layer.safetensors")
    torch.save({**layers, "other.weight": -layers["conv.weight"]}, tmp_path / "layers.pt")
    words = ["invert", samples_folder / "features.safetensors", "-k", tmp_path / "layers.pt"]
    options = ["--layer", "conv", "--method", "iterative", "--max-iterations", "2", "--json", "-o", output]
    report = deconv(*words, *options, expect=ExitCode.UNTRUSTWORTHY).report
    assert report["kernel"]["layer"] == "conv"
    assert report["kernel"]["shape"] == [32, 32, 3, 3]
    first = np.load(output)
    output.unlink()
    deconv(*shlex.split(report["rerun"])[1:], expect=ExitCode.UNTRUSTWORTHY)
    assert np.array_equal(np.load(output), first)


def test_rerun_with_names_that_a_shell_would_trip_over(deconv, photograph, gentle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photograph.rename("-my photo [1] 'é'.png")
    gentle.rename("-k $HOME.npy")
    words = ["invert", "--kernel=-k $HOME.npy", '--output=-out [2] "ü".tif', "--json", "--", "-my photo [1] 'é'.png"]
    report = deconv(*words).report
    output = tmp_path / '-out [2] "ü".tif'
    first = tifffile.imread(output)
    output.unlink()
    deconv(*shlex.split(report["rerun"])[1:])
    assert np.array_equal(tifffile.imread(output), first)
