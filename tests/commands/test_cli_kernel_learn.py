"""`deconv kernel learn`: from two files or two folders, with a page, a checkpoint and a loss of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import bad_losses
import numpy as np
import pytest
import torch
from PIL import Image

import deconv_cli
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.io.codecs.safetensors_file import SAFETENSORS


@pytest.fixture
def pair(deconv, save, tmp_path):
    """A scene and the same blurred, as files."""
    random = np.random.default_rng(0)
    x, kernel = save("x", random.random((1, 26, 24))), save("k", random.random((3, 4)))
    deconv("forward", x, "-k", kernel, "-o", tmp_path / "y.npy", "--output-dtype", "float64", "--dtype", "float64")
    return x, tmp_path / "y.npy", np.load(kernel)


def test_a_pair_of_tensors_gives_the_kernel_and_a_page(deconv, pair, tmp_path):
    x, y, kernel = pair
    done = deconv("kernel", "learn", x, y, "--size", "3,4", "--boundary", "zero", "-o", tmp_path / "found.safetensors",
                  "--report", tmp_path / "page.html", "--json")  # fmt: skip
    stored = SAFETENSORS.read(tmp_path / "found.safetensors")
    found = np.asarray(stored.samples)
    assert np.abs(found - kernel).max() < 1e-6
    report = done.report
    assert report["certificate"] < 1e-6
    assert report["curve"][0]["held_out"] > 100 * report["curve"][-1]["held_out"]
    library = deconv_cli.learn_kernel([tuple(torch.from_numpy(np.load(path)) for path in (x, y))], (3, 4),
                                      boundary="zero")  # fmt: skip
    assert np.array_equal(library.taps.float().numpy(), found)
    assert stored.record["curve"] == report["curve"]
    assert str(tmp_path) not in json.dumps(stored.record)
    assert [point.held_out for point in library.curve] == [point["held_out"] for point in report["curve"]]
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Learning curve" in page
    assert "Learned from 1 pair of pictures" in page
    assert page.count("<img") == 2
    assert "<script" not in page


def test_a_checkpoint_is_gone_on_from(deconv, pair, tmp_path):
    x, y, _ = pair
    words = ["kernel", "learn", x, y, "--size", "3,4", "--loss", "huber:0.1"]
    deconv(*words, "-o", tmp_path / "whole.npy")
    kept = tmp_path / "state.pt"
    deconv(*words, "-o", tmp_path / "part.npy", "--max-epochs", 1, "--checkpoint", kept)
    before = torch.load(kept, weights_only=True)
    assert before["refinement"] is not None
    torch.save(before | {"refinement": None}, kept)
    done = deconv(*words, "-o", tmp_path / "rest.npy", "--checkpoint", kept, "--json")
    assert (tmp_path / "rest.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert len(done.report["curve"]) > 2


def test_folders_are_matched_by_name_and_sharp_ones_are_blurred(deconv, samples_folder, tmp_path):
    for folder in ("sharp", "blurred"):
        (tmp_path / folder).mkdir()
    picture = Image.open(samples_folder / "camera.png").convert("L")
    for name, corner in (("a.png", 40), ("b.png", 90)):
        picture.crop((corner, corner, corner + 48, corner + 44)).save(tmp_path / "sharp" / name)
    deconv("forward", tmp_path / "sharp", "-k", "gaussian:1", "-o", tmp_path / "blurred", "--noise", "gaussian:1")
    fit = deconv("kernel", "fit", tmp_path / "sharp", tmp_path / "blurred", "--size", "7,7", "--json").report
    done = deconv("kernel", "learn", tmp_path / "sharp", tmp_path / "blurred", "--size", "7,7", "--json").report
    assert [Path(path).name for path in done["input"]] == ["a.png", "a.png", "b.png", "b.png"]
    assert done["residual"] == pytest.approx(fit["residual"], rel=1e-9)
    bank = deconv("kernel", "learn", tmp_path / "sharp", "--inverse", "-k", "gaussian:1", "--noise", "gaussian:1",
                  "--size", "7,7", "-o", tmp_path / "bank.safetensors")  # fmt: skip
    assert "dB by Tikhonov's estimate" in bank.stderr
    deconv("forward", tmp_path / "blurred", "-k", tmp_path / "bank.safetensors", "--boundary", "reflect", "-o",
           tmp_path / "restored")  # fmt: skip
    for name in ("a.png", "b.png"):
        sharp, blurred, restored = (
            np.asarray(Image.open(tmp_path / folder / name), dtype=float)[6:-6, 6:-6] ** 2.2  # nearly in light
            for folder in ("sharp", "blurred", "restored")
        )
        assert np.square(restored - sharp).mean() < 0.8 * np.square(blurred - sharp).mean()


def test_refusals(deconv, refuses, pair, tmp_path):
    x, y, _ = pair
    learn = ["kernel", "learn", x, y, "--size", "3,4"]
    refuses(*learn[:3], *learn[4:], code=ExitCode.USAGE, says="come in pairs")
    refuses(*learn, "-k", "disk:2", code=ExitCode.USAGE, says="add --inverse")
    refuses(*learn, "--inverse", "--noise", "gaussian:1", code=ExitCode.USAGE, says="name a kernel")
    refuses(*learn, "--checkpoint", tmp_path / "c.npy", code=ExitCode.USAGE, says="end it in .pt")
    refuses(*learn, "--report", tmp_path / "c.txt", code=ExitCode.USAGE, says="should end in .html")
    refuses(*learn, "--loss", "l3", code=ExitCode.USAGE, says="loss must be one of squared")
    for more in (["-o", y], ["-o", tmp_path / "a.pt", "--checkpoint", tmp_path / "." / "a.pt"]):
        refuses(*learn, *more, "--force", code=ExitCode.USAGE, says="would be written over")
    torch.save({"a": torch.ones(2)}, tmp_path / "other.pt")
    refuses(*learn, "--checkpoint", tmp_path / "other.pt", code=ExitCode.INPUT_REFUSED, says="is another file")
    said = refuses(*learn, "--loss", f"{bad_losses.__file__}:detached", code=ExitCode.FAULT_FOUND, says="DETACHED")
    assert "bad_losses.py:9" in said
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    for place in ("one/a.npy", "one/b.npy", "two/a.npy"):
        np.save(tmp_path / place, np.load(x))
    refuses("kernel", "learn", tmp_path / "one", tmp_path / "two", "--size", "3,3", code=ExitCode.USAGE,
            says="'b' is in one of them alone")  # fmt: skip
