"""Model files of every kind through `deconv check-grad`; what reading them refuses is tested in tests/models."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from gradient_cases import FIXTURES
from hostile_pickles import with_members
from safetensors import safe_open
from safetensors.torch import load_file

from deconv_cli.commands.exit_codes import ExitCode

OWN = """from torch import nn
class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
    def forward(self, x):
        return self.conv(x)
"""


def test_each_message_on_a_whole_module_names_the_next_thing_to_type(deconv, refuses, tmp_path, monkeypatch):
    """Followed word by word, they lead to a restored file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("own.py").write_text(OWN, encoding="utf-8")
    torch.save(importlib.import_module("own").Own(), "model.pt")
    torch.save(torch.rand(1, 2, 9, 9), "x.pt")
    words, kernel = ["invert", "x.pt", "-o", "y.pt"], ["--kernel", "model.pt"]
    refused = {"code": ExitCode.INPUT_REFUSED}
    extract = "deconv kernel extract model.pt --model own.py:Own --layer NAME --output layer.safetensors"
    refuses(*words, *kernel, "--layer", "conv", **refused, says=extract)
    says = extract.replace("NAME", "conv")
    wanted = "write the layer to a file with deconv kernel extract"
    refuses(*words, *kernel, "--layer", "conv", "--model", "own.py:Own", code=ExitCode.USAGE, says=wanted)
    shutil.copy("model.pt", "my model.pt")
    refuses(*words, "-k", "my model.pt", "--layer", "conv", **refused, says="extract 'my model.pt' --model own.py:Own")
    for command in (("kernel", "extract"), ("check-grad",)):
        sentence = refuses(*command, "model.pt", **refused, says="name the model's class with --model own.py:Own.")
        assert "--allow-global" not in sentence
    deconv(*says.split()[1:])
    answer = (ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY)
    deconv(*words, "--kernel", "layer.safetensors", "--lambda", "1e-2", "-q", expect=answer)
    checked = deconv("check-grad", "model.pt", "--model", "own.py:Own", "--input-shape", "1,2,9,9", "--json").report
    assert (checked["model"]["class"], checked["counts"]) == ("Own", {"OK": 2})
    refuses("invert", "x.pt", "--layers", "conv", code=ExitCode.USAGE, says="--layers needs one --kernel FILE")


class TestModulesWithMembersOfTheWrongKind:
    """What reading lets through fails where the model is run, and is a sentence there."""

    @pytest.mark.parametrize("members", [{"weight": 3}, {"_forward_hooks": {0: "abc"}}])
    def test_a_model_that_cannot_be_run(self, refuses, tmp_path, members):
        torch.save(with_members(**members), tmp_path / "model.pt")
        words = ["check-grad", tmp_path / "model.pt", "--input-shape", "2,3"]
        refuses(*words, code=ExitCode.USAGE, says="cannot be run")


NETWORK = ("fisher", "--model", f"{FIXTURES / 'detached.py'}:Base")


@pytest.mark.parametrize("kind", ["empirical", "sampled", "exact", "ggn"])
def test_names_and_shapes_of_the_state_dict(deconv, tmp_path, data, kind):
    out = tmp_path / "fisher.safetensors"
    words = [*NETWORK, "--data", data, "--loss", "cross-entropy", "--json"]
    report = deconv(*words, "-o", out, "--kind", kind, "--batch-size", "6").report
    found = load_file(out)
    assert {name: tuple(t.shape) for name, t in found.items()} == {
        "body.weight": (6, 4),
        "body.bias": (6,),
        "head.weight": (3, 6),
        "head.bias": (3,),
    }
    assert all(bool((tensor >= 0).all()) for tensor in found.values())
    assert (report["kind"], report["n_samples"], report["batch_size"]) == (kind, 20, 6)
    assert report["trace"] == pytest.approx(sum(float(t.sum()) for t in found.values()), rel=1e-5)
    assert 0 < report["batch_mean_squared_trace"] < report["trace"]
    with safe_open(out, framework="pt") as opened:
        assert json.loads(opened.metadata()["deconv"])["kind"] == kind


def test_an_existing_file_is_kept(refuses, deconv, tmp_path, data):
    out = tmp_path / "fisher.safetensors"
    out.write_bytes(b"precious")
    words = [*NETWORK, "--data", data, "--loss", "cross-entropy", "-o", out]
    refuses(*words, code=ExitCode.USAGE, says="--force")
    told = deconv(*words, "--force").stdout
    assert "squaring the mean gradient of a batch of 16 would give" in told
    assert load_file(out)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-o", "f.pt"], ".safetensors"),
        (["-o", "missing/f.safetensors", "--loss", "cross-entropy"], "the folder 'missing' of output"),
        (["-o", "f.safetensors", "--loss", "cross-entropy", "--draws", "2"], ["--draws", "the kind is empirical"]),
        (["-o", "f.safetensors"], ["likelihood", "--loss cross-entropy"]),
    ],
)
def test_refusals(refuses, data, words, says):
    refuses(*NETWORK, "--data", data, *words, code=ExitCode.USAGE, says=says)


@pytest.mark.parametrize(("model", "shape"), [("dying.py:Corner", "1,3"), ("unusual.py:OwnLoss", "5,4")])
def test_a_model_that_gives_its_loss_has_a_likelihood(deconv, tmp_path, model, shape):
    words = ["fisher", "--model", f"{FIXTURES / model}", "--input-shape", shape, "--json"]
    assert deconv(*words, "-o", tmp_path / "f.safetensors").report["trace"] > 0
