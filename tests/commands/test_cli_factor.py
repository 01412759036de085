"""`deconv factor` and `deconv invert --factor`: the same samples as without, and one sentence where they do not fit."""

import hashlib
import shlex
from functools import partial

import numpy as np
import pytest
import torch

import deconv_cli
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.io import read_image


@pytest.fixture
def deconv(deconv):
    """Run the command on noise, which no convolution made: whether that is doubted is not what is tested here."""
    return partial(deconv, expect=(ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY))


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def taps_of(n_outputs, n_inputs, seed=0):
    taps = 0.1 * np.random.default_rng(seed).standard_normal((n_outputs, n_inputs, 3, 4)).astype(np.float32)
    for channel in range(min(n_outputs, n_inputs)):
        taps[channel, channel, 1, 1] += 1
    return taps


@pytest.fixture
def layer(tmp_path):
    """A layer of a network, with a bias, beside another one."""
    path = tmp_path / "network.pt"
    state = {
        "conv.weight": torch.from_numpy(taps_of(3, 2)),
        "conv.bias": torch.tensor([1.0, -2.0, 0.5]),
        "other.weight": torch.ones(1, 1, 3, 3),
    }
    torch.save(state, path)
    return path


@pytest.fixture
def outputs(tmp_path, save):
    """What the layer makes of an image of 14 × 15."""
    return save("outputs", np.random.default_rng(1).standard_normal((3, 14, 15)).astype(np.float32))


@pytest.fixture
def factor(deconv, layer, tmp_path):
    path = tmp_path / "factor.safetensors"
    deconv("factor", "--kernel", layer, "--layer", "conv", "--size", "14,15", "-o", path, "-q")
    return path


SETTINGS = {
    "as it comes": ([], (14, 15)),
    "λ = 0": (["--lambda", "0"], (14, 15)),
    "truncated": (["--boundary", "circular", "--rcond", "0.2"], (14, 15)),
    "valid": (["--padding", "valid", "--lambda", "1e-3"], (16, 18)),
    "full": (["--padding", "full", "--boundary", "zero"], (12, 12)),
    "strip": (["--boundary", "unknown", "--method", "strip", "--lambda", "1e-2"], (14, 15)),
    "iterative": (["--method", "iterative", "--tolerance", "1e-3", "--max-iterations", "50"], (14, 15)),
    "float64": (["--dtype", "float64", "--boundary", "reflect", "--padding", "1,2"], (14, 14)),
}


@pytest.mark.parametrize(("options", "size"), SETTINGS.values(), ids=SETTINGS.keys())
def test_a_factor_gives_the_samples_that_the_kernel_gives(deconv, layer, outputs, tmp_path, options, size):
    kernel = ["--kernel", layer, "--layer", "conv"]
    words = [*kernel, "--size", f"{size[0]},{size[1]}", *options]
    made = deconv("factor", *words, "-o", tmp_path / "f.safetensors", "--json").report
    assert made["output_size"] == [14, 15]
    border = [] if "--boundary" in options else ["--boundary", "zero"]
    penalty = [] if "--penalty" in options else ["--penalty", "identity"]
    plain = deconv("invert", outputs, *kernel, *options, *border, *penalty, "-o", tmp_path / "a.npy", "--json").report
    report = deconv(
        "invert", outputs, "--factor", tmp_path / "f.safetensors", "-o", tmp_path / "b.npy", "--json"
    ).report
    assert np.load(tmp_path / "b.npy").shape == (2, *size)
    assert np.array_equal(np.load(tmp_path / "b.npy"), np.load(tmp_path / "a.npy"))
    for key in ("boundary", "padding", "lambda", "penalty", "rcond", "residual", "border", "solver", "kernel", "dtype"):
        assert report[key] == plain[key], key
        if key in made:
            assert report[key] == made[key], key
    assert (report["method"], report["method_reason"]) == (made["method"], made["method_reason"])
    assert report["kernel"]["bias"]


def test_the_record_names_the_factor_and_the_kernel(deconv, layer, outputs, factor, tmp_path, kept_in):
    output = tmp_path / "x.tif"
    report = deconv("invert", outputs, "--factor", factor, "-o", output, "--json").report
    assert report["factor"] == {"path": str(factor), "sha256": digest(factor)}
    assert report["kernel"]["path"] == str(layer)
    assert report["kernel"]["layer"] == "conv"
    assert report["kernel"]["sha256"] == digest(layer)
    assert report["boundary_reason"] == report["lambda_reason"] == "fixed in the factor"
    assert read_image(output).record == kept_in(tmp_path, report)
    assert f"--factor={factor}" in report["rerun"]
    assert "--kernel" not in report["rerun"]
    samples = read_image(output).values
    output.unlink()
    deconv(*shlex.split(report["rerun"])[1:])
    assert torch.equal(read_image(output).values, samples)
    without = deconv("invert", outputs, "-k", layer, "--layer", "conv", "-o", output, "--force", "--json").report
    assert without["factor"] is None


def test_the_report_of_factor(deconv, layer, tmp_path):
    path = tmp_path / "f.safetensors"
    words = ["factor", "--kernel", layer, "--layer", "conv", "--size", "14,15", "--padding", "valid", "-o", path]
    done = deconv(*words, "--json", "--dtype", "float64")
    report = done.report
    assert (report["schema"], report["command"]) == (1, "factor")
    assert (report["size"], report["output_size"]) == ([14, 15], [12, 12])
    assert report["kernel"]["sha256"] == digest(layer)
    assert report["output"] == {"path": str(path), "bytes": path.stat().st_size, "sha256": digest(path)}
    assert report["factors"]["bytes"] == sum(
        np.prod(shape) * {"pivots": 4, "twists": 1}.get(name, 8 if "factor" in name or name == "coupling" else 16)
        for name, shape in report["factors"]["shapes"].items()
    )
    assert 0 < report["factors"]["time_s"] < report["time_s"]
    assert report["factors"]["bytes"] < report["output"]["bytes"]
    assert report["lambda"] == 1e-6
    assert report["dtype"] == "float64"
    assert "is_well_posed" in report["well_posedness"]
    for part in ("14×15, from outputs of 12×12", "conv", path.name, "1e-06, penalty", "factors"):
        assert part in done.stderr or part == "conv"
    content = path.read_bytes()
    path.unlink()
    deconv(*shlex.split(report["rerun"])[1:])
    assert path.read_bytes() != b""
    again = deconv_cli.saved_inverses.read_inverse(path, torch.device("cpu")).inverse
    kept = tmp_path / "kept.safetensors"  # the other file is mapped, and may not be written to
    kept.write_bytes(content)
    first = deconv_cli.saved_inverses.read_inverse(kept, torch.device("cpu")).inverse
    y = torch.ones(3, 12, 12, dtype=torch.float64)
    assert torch.equal(again(y), first(y))
    quiet = deconv(*words, "--force", "-q")
    assert (quiet.stdout, quiet.stderr) == (f"{path}\n", "")


def test_one_factor_for_many_files_is_read_once(deconv, factor, save, tmp_path, monkeypatch):
    from deconv_cli import saved_inverses

    reads = []
    read = saved_inverses.read_inverse
    monkeypatch.setattr(saved_inverses, "read_inverse", lambda *words: reads.append(words) or read(*words))
    images = [np.random.default_rng(seed).standard_normal((3, 14, 15)) for seed in range(3)]
    sources = [save(f"y{i}", image) for i, image in enumerate(images)]
    deconv("invert", "--factor", factor, *sources, "-o", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.npy")) == ["y0.npy", "y1.npy", "y2.npy"]
    assert len(reads) == 1
    deconv("invert", "--factor", factor, sources[1], "-o", tmp_path / "alone.npy")
    assert np.array_equal(np.load(tmp_path / "alone.npy"), np.load(tmp_path / "out" / "y1.npy"))


def test_a_color_photograph_by_a_factor_of_a_point_spread_function(deconv, photograph, gentle, save, tmp_path):
    kernel = ["-k", save("point spread function", 3 * np.load(gentle)), "--convention", "convolution", "--normalize"]
    options = ["--boundary", "unknown", "--lambda", "1e-3", "--penalty", "gradient", "--dtype", "float32"]
    path = tmp_path / "f.safetensors"
    deconv("factor", *kernel, "--size", "40,48", *options, "-o", path)
    report = deconv("invert", photograph, "--factor", path, "-o", tmp_path / "a.tif", "--json").report
    deconv("invert", photograph, *kernel, "--lambda", "1e-3", "-o", tmp_path / "b.tif")
    assert torch.equal(read_image(tmp_path / "a.tif").values, read_image(tmp_path / "b.tif").values)
    assert report["kernel"]["convention"] == "convolution"
    assert any("reversed along" in note for note in report["notes"])
    assert any("divided by their sum" in note for note in report["notes"])


FIXED = {
    "--kernel": ["other.npy"],
    "--normalize": [],
    "--boundary": ["auto"],
    "--lambda": ["1e-6"],
    "--method": ["auto"],
    "--dtype": ["float32"],
}


@pytest.mark.parametrize("option", FIXED)
def test_what_the_factor_fixes_is_not_said_again(refuses, factor, outputs, tmp_path, option):
    words = ["invert", outputs, "--factor", factor, "-o", tmp_path / "x.npy", option, *FIXED[option]]
    refuses(*words, code=ExitCode.USAGE, says=["--factor already fixes", option])


def test_inputs_that_do_not_fit_are_refused_with_both_numbers(refuses, factor, save, tmp_path):
    output = ["-o", tmp_path / "x.npy"]
    other = save("other", np.ones((3, 13, 15)))
    says = ["14×15", "13×15", "--input-size 14,15"]
    refuses("invert", other, "--factor", factor, *output, code=ExitCode.INPUT_REFUSED, says=says)
    channels = save("channels", np.ones((4, 14, 15)))
    refuses("invert", channels, "--factor", factor, *output, code=ExitCode.INPUT_REFUSED, says=["3 channels", "has 4"])


def contradictions(deconv, source, kernel, tmp_path, *options):
    blurred = tmp_path / "blurred.tif"
    deconv("forward", source, "-k", kernel, "-o", blurred, "--force", *options)
    words = ["invert", blurred, "--factor", tmp_path / "f.safetensors", "-o", tmp_path / "x.tif", "--force", "--json"]
    done = deconv(*words)
    notes = [note for note in done.report["notes"] if "deconv forward made this file" in note]
    assert all(note in done.stderr.replace("\n", " ") for note in notes)
    return notes


def test_records_that_contradict_the_factor_are_noted(deconv, gray, gentle, save, tmp_path):
    words = ["factor", "-k", gentle, "--size", "32,36", "--boundary", "reflect"]
    deconv(*words, "-o", tmp_path / "f.safetensors", "-q")
    assert contradictions(deconv, gray, gentle, tmp_path, "--boundary", "reflect") == []
    (note,) = contradictions(deconv, gray, gentle, tmp_path, "--boundary", "symmetric")
    assert "boundary symmetric, but the factor was made for boundary reflect" in note
    other = save("other kernel", np.load(gentle)[::-1, :3])
    notes = contradictions(deconv, gray, other, tmp_path, "--boundary", "reflect")
    assert len(notes) == 1
    assert f"'{other.name}'" in notes[0]
    (note,) = contradictions(
        deconv, gray, save("tiny", np.ones((3, 3))), tmp_path, "--boundary", "reflect", "--padding", "1"
    )[:1]
    assert "padding 1, but the factor was made for padding same" in note


def test_damaged_and_other_files_are_refused(refuses, factor, outputs, gentle, layer, tmp_path):
    words = ["invert", outputs, "-o", tmp_path / "x.npy", "--factor"]
    for path, says in ((gentle, "NumPy .npy"), (layer, "PyTorch")):
        refuses(*words, path, code=ExitCode.INPUT_REFUSED, says=["should be a saved inverse", says, str(path)])
    refuses(*words, tmp_path / "no.safetensors", code=ExitCode.USAGE, says="does not exist")
    data = factor.read_bytes()
    factor.write_bytes(data[:-100])
    refuses(*words, factor, code=ExitCode.INPUT_REFUSED, says=str(factor))
    damaged = bytearray(data)
    damaged[-100] ^= 4
    factor.write_bytes(damaged)
    refuses(*words, factor, code=ExitCode.INPUT_REFUSED, says=["was changed", str(factor)])


def test_places_and_sizes_that_cannot_be(refuses, deconv, gentle, tmp_path):
    words = ["factor", "-k", gentle, "--size", "32,36", "-o"]
    existing = tmp_path / "f.safetensors"
    existing.write_bytes(b"precious")
    refuses(*words, existing, code=ExitCode.USAGE, says=[str(existing), "--force"])
    refuses(*words, tmp_path / "f.npy", code=ExitCode.USAGE, says=".safetensors")
    refuses(*words, tmp_path / "no" / "f.safetensors", code=ExitCode.USAGE, says="does not exist")
    refuses(*words, gentle, "--force", code=ExitCode.USAGE, says=".safetensors")
    deconv(*words, existing, "--force")
    assert existing.read_bytes() != b"precious"
    for size in ("32", "0,36", "32,36,3", "a,b"):
        wrong = ["factor", "-k", gentle, f"--size={size}", "-o", tmp_path / "g.safetensors"]
        refuses(*wrong, code=ExitCode.USAGE, says=["H,W", f"'{size}'"])


def test_a_picture_that_a_factor_does_not_fit_is_doubted(deconv, photograph, tmp_path):
    deconv("factor", "--kernel", "gaussian:1.5", "--size", "40,48", "-o", tmp_path / "f.safetensors", "-q")
    words = ["invert", photograph, "--factor", tmp_path / "f.safetensors", "-o", tmp_path / "x.png", "--json"]
    done = deconv(*words)
    assert done.code is ExitCode.UNTRUSTWORTHY
    sentences = [doubt["sentence"] for doubt in done.report["doubts"]]
    assert any("% of the restored samples lie far outside 0 to 255" in sentence for sentence in sentences)
