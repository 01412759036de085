"""`deconv fisher` at the prompt: what is written, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from gradient_cases import FIXTURES, load_fixture
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from deconv_cli.commands.exit_codes import ExitCode

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
    assert "the mean gradient of a batch of 16, squared, would have given" in told
    assert load_file(out)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-o", "f.pt"], ".safetensors"),
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


def test_a_model_that_takes_a_gradient_itself(deconv, tmp_path):
    """Its samples are taken one by one, and give what a loop of autograd gives."""
    inputs, target = torch.randn(6, 4), torch.randn(6, 4)
    save_file({"input": inputs, "target": target}, tmp_path / "data.safetensors")
    words = ["fisher", "--model", f"{FIXTURES / 'unusual.py'}:Hamiltonian", "--data", tmp_path / "data.safetensors"]
    deconv(*words, "--loss", "mse", "-o", tmp_path / "f.safetensors", "-q")
    torch.manual_seed(0)
    model = load_fixture("unusual").Hamiltonian()
    expected = torch.zeros(8, 4)
    for x, y in zip(inputs, target, strict=True):
        loss = 0.5 * (model(x[None]) - y).square().sum()
        expected += torch.autograd.grad(loss, model.energy[0].weight)[0].square() / 6
    found = load_file(tmp_path / "f.safetensors")["energy.0.weight"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
