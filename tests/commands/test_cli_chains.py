"""`deconv invert --layers`: activations of networks at the prompt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import deconv_cli
from deconv_cli.commands.chain_restoration import as_picture
from deconv_cli.commands.exit_codes import ExitCode

CODE = """
from torch import nn
import torch

class Net(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        print("made")
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.act = nn.ReLU()
        self.mix = nn.Conv2d(width, 4, 1)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.last(torch.tanh(self.mix(self.act(self.conv(x)))))
"""


@pytest.fixture
def net(tmp_path):
    """A whole network in net.pt, its weights in state.pt and its class in code.py."""
    torch.manual_seed(0)
    layers = {"conv": nn.Conv2d(1, 16, 3, padding=1), "act": nn.ReLU(), "mix": nn.Conv2d(16, 4, 1)}
    net = nn.Sequential(*layers.values()).eval().requires_grad_(False)
    torch.save(net, tmp_path / "net.pt")
    state = {f"{name}.{key}": value for name, layer in layers.items() for key, value in layer.state_dict().items()}
    state |= {f"last.{key}": value for key, value in nn.Conv2d(4, 4, 1).state_dict().items()}
    torch.save(state, tmp_path / "state.pt")
    (tmp_path / "code.py").write_text(CODE)
    return net


@pytest.fixture
def activation(net, tmp_path):
    """An input between 0 and 1, and its output of the first two layers, in a file."""
    x = torch.rand(1, 9, 8, generator=torch.Generator().manual_seed(1))
    save_file({"y": net[:2](x[None])[0].contiguous()}, tmp_path / "y.safetensors")
    return x, tmp_path / "y.safetensors"


def test_an_activation_of_a_whole_module_goes_back_to_its_input(deconv, activation, net, values, distance, tmp_path):
    x, y = activation
    done = deconv("invert", y, "--kernel", tmp_path / "net.pt", "--layers", "0..1", "-o", tmp_path / "x.safetensors",
                  "--json")  # fmt: skip
    report = done.report
    assert distance(values(tmp_path / "x.safetensors"), x[None]) < 1e-5
    assert [layer["name"] for layer in report["layers"]] == ["0", "1"]
    assert report["solver"]["method"] == "gauss_newton"
    assert report["relative_residual"] < 1e-6
    assert report["determined"] == {"share": 1.0, "n_dimensions": 72, "is_exact": True}
    assert report["is_trusted"]
    assert "ReLU(): not affine" in done.stderr
    assert "all of the input's 72 numbers, by the rank of the derivative" in done.stderr
    before = values(tmp_path / "x.safetensors")
    deconv(*report["rerun"].split()[1:])
    assert torch.equal(values(tmp_path / "x.safetensors"), before)
    result = deconv_cli.invert_chain(values(y).float(), net[:2])
    assert torch.equal(result.image.float().double(), before)


def test_weights_alone_need_the_class_whose_code_is_run(deconv, refuses, activation, values, distance, tmp_path):
    x, y = activation
    words = ("invert", y, "-k", tmp_path / "state.pt", "--layers", "conv,act", "-o", tmp_path / "x.npy")
    refuses(*words, code=ExitCode.USAGE, says="name the class with --model")
    model = f"{tmp_path / 'code.py'}:Net"
    done = deconv(*words, "--model", model, "--init", '{"width": 16}')
    assert distance(values(tmp_path / "x.npy"), x[None]) < 1e-5
    assert "made" in done.stderr
    assert done.stdout.strip() == str(tmp_path / "x.npy")
    assert "Conv2d(1, 16, kernel_size=(3, 3)" in done.stderr


def test_a_picture_shows_the_estimate_and_says_how(deconv, activation, tmp_path):
    x, y = activation
    page = tmp_path / "x.html"
    done = deconv(
        "invert", y, "-k", tmp_path / "net.pt", "--layers", "0..1", "-o", tmp_path / "x.png", "--report", page
    )
    assert "values from 0 to 1 are shown as 0 to 255" in done.stderr
    with Image.open(tmp_path / "x.png") as picture:
        assert np.abs(np.asarray(picture) - 255 * x[0].numpy()).max() <= 0.51
    text = page.read_text()
    assert all(words in text for words in ("You can use this result", "Determined", "not affine"))
    assert text.count("data:image/png") == 3


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [(0.01, 0.99, (0, 1)), (-0.01, 0.4, (0, 1)), (-0.9, 0.99, (-1, 1)), (3.0, 250.0, (0, 255)), (-2.1, 2.6, None),
     (0.0, 0.1, None), (5.0, 5.0, (4.5, 5.5))],
)  # fmt: skip
def test_the_range_that_is_shown(low, high, ends):
    image = torch.tensor([[[[low, high]]]], dtype=torch.float64)
    shown, (note,) = as_picture(image)
    black, white = ends or (low, high)
    torch.testing.assert_close(shown, 255 * (image - black) / (white - black))
    assert f"values from {black:.4g} to {white:.4g} are shown" in note


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--layers", "0..7"], "no layer '7'"),
        (["--model", "code.py:Net"], "--model is for --layers"),
        (["--time-limit", "5"], "--time-limit is for --layers, which is missing; leave it out."),
        (["--layers", "0..1", "--time-limit", "0"], "--time-limit must be a positive number"),
        (["--layers", "0..1", "--layer", "0"], "--layers does not go with --layer"),
        (["--layers", "0..1", "--truth", "y.safetensors"], "--layers does not go with --truth"),
        (["--layers", "0..1", "--boundary", "zero"], "boundary has no effect for a chain"),
        (["--layers", "0..1", "--init", "{}"], "--init gives the arguments of --model"),
        (["--layers", "0..1", "--no-bias"], "--layers does not go with --no-bias"),
        (["--layers", "0..1", "--kernel", "net.pt"], "needs one --kernel FILE"),
    ],
)
def test_what_does_not_go_with_a_chain_is_refused(refuses, activation, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    refuses("invert", "y.safetensors", "-k", "net.pt", *words, "-o", "x.npy", code=ExitCode.USAGE, says=says)
