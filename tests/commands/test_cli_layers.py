"""Layers with a stride, a dilation or groups, and transposed ones, at the prompt and from model files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from deconv_cli.commands.app import app
from deconv_cli.commands.exit_codes import ExitCode

MODULES = {
    "strided": lambda: nn.Conv2d(2, 12, 3, stride=2, padding=1),
    "grouped": lambda: nn.Conv2d(4, 8, 3, dilation=2, padding=2, groups=2, padding_mode="circular"),
    "transposed": lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1),
}
OPTIONS = {
    "strided": ["--stride=2", "--padding=1"],
    "grouped": ["--dilation=2", "--padding=2", "--groups=2", "--boundary=circular"],
    "transposed": ["--transposed", "--stride=2", "--padding=1", "--output-padding=1"],
}


@pytest.fixture
def layer(request, tmp_path):
    """A layer, an input, and the files of both: the whole module, its weights alone, and the input."""
    torch.manual_seed(3)
    module = MODULES[request.param]().double()
    x = torch.randn(module.in_channels, 12, 10, dtype=torch.float64)
    torch.save(module, tmp_path / "module.pt")
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    np.save(tmp_path / "x.npy", x.numpy())
    return request.param, module, x, tmp_path


def run(*words):
    words = [*map(str, words), "--output-dtype=float64", "--json", "--quiet", "--force"]
    result = CliRunner().invoke(app, words, prog_name="deconv")
    assert result.exit_code == ExitCode.SUCCESS, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("layer", MODULES, indirect=True)
def test_a_model_file_says_all_of_its_layer(layer):
    name, module, x, folder = layer
    made = run("forward", folder / "x.npy", "-k", folder / "module.pt", "-o", folder / "y.npy")
    y = torch.from_numpy(np.load(folder / "y.npy"))
    assert float((y - module(x).detach()).abs().max()) < 1e-12
    assert any(note.startswith("the layer has stride") for note in made["notes"])
    again = run("forward", folder / "x.npy", "-k", folder / "weights.pt", *OPTIONS[name], "-o", folder / "y2.npy")
    assert np.array_equal(np.load(folder / "y2.npy"), np.load(folder / "y.npy"))
    assert again["layer_options"] == made["layer_options"]


@pytest.mark.parametrize("layer", MODULES, indirect=True)
def test_what_forward_did_is_undone_without_saying_it_again(layer):
    name, _, x, folder = layer
    run("forward", folder / "x.npy", "-k", folder / "weights.pt", *OPTIONS[name], "-o", folder / "y.npy")
    words = ["invert", folder / "y.npy", "-k", folder / "weights.pt", "--lambda=0", "-o", folder / "restored.npy"]
    found = run(*words)
    restored = torch.from_numpy(np.load(folder / "restored.npy"))
    assert restored.shape == x.shape
    if name == "strided":  # 12 outputs for 8 numbers of the image
        assert float((restored - x).norm()) < 1e-8 * float(x.norm())
    for option in OPTIONS[name]:
        assert option in found["rerun"].split()


@pytest.mark.parametrize("layer", ["strided"], indirect=True)
def test_weights_alone_are_doubted_with_the_way_to_say_the_rest(layer):
    _, module, x, folder = layer
    np.save(folder / "y.npy", module(x).detach().numpy())
    words = ["invert", folder / "y.npy", "-k", folder / "weights.pt", "-o", folder / "z.npy"]
    result = CliRunner().invoke(app, [*map(str, words)], prog_name="deconv")
    assert result.exit_code == ExitCode.UNTRUSTWORTHY
    assert "may have a stride, a dilation or groups, which you must give, as in --stride 2" in " ".join(
        result.stderr.split()
    )


def test_the_size_of_the_image_is_on_record(tmp_path):
    """Of 13 × 9 pixels a stride of two leaves as many outputs as of 14 × 10."""
    torch.manual_seed(1)
    torch.save(nn.Conv2d(2, 12, 3, stride=2, padding=1).double(), tmp_path / "module.pt")
    x = np.random.default_rng(0).random((2, 13, 9))
    np.save(tmp_path / "x.npy", x)
    run("forward", tmp_path / "x.npy", "-k", tmp_path / "module.pt", "-o", tmp_path / "y.npy")
    run("invert", tmp_path / "y.npy", "-k", tmp_path / "module.pt", "--lambda=0", "-o", tmp_path / "back.npy")
    assert np.abs(np.load(tmp_path / "back.npy") - x).max() < 1e-9


TAPS_FILE = """
import torch

def saturate(pixel, weight):
    print("called")
    return torch.tanh(pixel * weight)
"""


@pytest.fixture
def case(tmp_path, save):
    """An image, weights, and a file with taps."""
    random = np.random.default_rng(2)
    (tmp_path / "taps.py").write_text(TAPS_FILE)
    return save("x", 0.3 * random.random((1, 9, 8))), save("weights", random.uniform(-1, 1, (3, 1, 3, 3))), tmp_path


@pytest.mark.parametrize("tap", ["tan-sum", "taps.py:saturate"])
def test_forward_records_the_tap_and_invert_refuses_it(deconv, refuses, case, tap):
    x, weights, folder = case
    tap = tap.replace("taps.py", str(folder / "taps.py"))
    done = deconv("forward", x, "-k", weights, "--tap", tap, "-o", folder / "y.safetensors", "--json")
    assert done.report["tap"] == tap
    assert ("called" in done.stderr) == ("saturate" in tap)
    refuses("invert", folder / "y.safetensors", "-k", weights, "-o", folder / "x.npy", code=ExitCode.USAGE,
            says=f"with --tap {tap.rpartition('/')[2]}; apply the kernel without a tap")  # fmt: skip


def test_invert_undoes_the_products_that_were_named_so(deconv, case, values, distance):
    x, weights, folder = case
    deconv("forward", x, "-k", weights, "--tap", "product", "-o", folder / "y.npy", "--output-dtype", "float64")
    deconv("invert", folder / "y.npy", "-k", weights, "--lambda", 0, "-o", folder / "x2.npy", "--dtype", "float64")
    assert distance(values(folder / "x2.npy"), values(x)) < 1e-5


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["FOLDER/none.py:f"], "does not exist"),
        (["tan-sum", "--groups", "3"], "leave --groups out"),
        (["tan-sum", "--transposed"], "leave --transposed out"),
        (["product", "--light", "linear"], "--tap acts on the samples as they are stored"),
    ],
)
def test_refusals(refuses, case, words, says):
    x, weights, folder = case
    words = [word.replace("FOLDER", str(folder)) for word in words]
    refuses("forward", x, "-k", weights, "-o", folder / "out.npy", "--tap", *words, code=ExitCode.USAGE, says=says)


@pytest.mark.parametrize("layer", ["strided"], indirect=True)
def test_a_map_of_the_error_is_refused_where_no_error_is_predicted(layer):
    _, _, _, folder = layer
    run("forward", folder / "x.npy", "-k", folder / "module.pt", "-o", folder / "y.npy")
    words = ["invert", folder / "y.npy", "-k", folder / "module.pt", "-o", folder / "z.npy", "--error-map"]
    result = CliRunner().invoke(app, [*map(str, words), str(folder / "error.npy")], prog_name="deconv")
    assert result.exit_code == ExitCode.USAGE
    assert "predicted only for plain convolutions, but this layer has stride 2" in " ".join(result.stderr.split())
    assert not (folder / "z.npy").exists()
