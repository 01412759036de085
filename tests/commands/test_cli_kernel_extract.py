"""`deconv kernel extract`: layers listed, taken out of a model, and taken for a kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from deconv_cli.commands.exit_codes import ExitCode

CODE = """
from torch import nn

def make(stride=1):
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=stride), nn.Conv2d(4, 2, 3))
"""


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3)).state_dict(), tmp_path / "model.pt")
    (tmp_path / "net.py").write_text(CODE)
    return tmp_path / "model.pt"


def test_layers_are_listed_where_no_name_is_given(deconv, model):
    listed = deconv("kernel", "extract", model)
    assert "4×1×3×3, with a bias" in listed.stdout
    assert listed.stderr == ""
    report = deconv("kernel", "extract", model, "--json").report
    assert [layer["name"] for layer in report["layers"]] == ["0", "1"]
    code = f"{model.parent / 'net.py'}:make"
    with_code = deconv("kernel", "extract", model, "--model", code, "--init", '{"stride": 2}')
    assert "Conv2d, 4×1×3×3, with a bias, stride 2" in with_code.stdout


def test_a_layer_is_a_kernel(deconv, model, tmp_path, save, values):
    target = tmp_path / "layer.safetensors"
    done = deconv("kernel", "extract", model, "--layer", "0", "-o", target, "--json", "--show")
    assert done.report["layer"]["shape"] == [4, 1, 3, 3]
    assert "geometry" not in done.stderr
    assert "name the class of the model here with --model" in done.stderr
    assert "draws on a terminal" in done.stderr
    image = save("x", np.random.default_rng(0).random((1, 8, 8)).astype(np.float32))
    deconv("forward", image, "-k", target, "--padding", "valid", "-o", tmp_path / "y.npy")
    network = torch.load(model, weights_only=True)
    wanted = nn.functional.conv2d(torch.from_numpy(np.load(image)), network["0.weight"], network["0.bias"])
    assert float((values(tmp_path / "y.npy")[0] - wanted).abs().max()) < 1e-6


def test_refusals(refuses, model, tmp_path):
    words = ["kernel", "extract", model, "--layer", "0", "-o", tmp_path / "k.npy"]
    refuses(*words, code=ExitCode.USAGE, says="should end in .safetensors")
    refuses(*words[:-1], model, "--force", code=ExitCode.USAGE, says="is the input itself")
    refuses("kernel", "extract", model, "-o", tmp_path / "k.safetensors", code=ExitCode.USAGE,
            says="choose among 0, 1 with --layer NAME")  # fmt: skip
    refuses("kernel", "extract", model, "--layer", "7", code=ExitCode.USAGE, says="no convolution named '7'")
    refuses("kernel", "extract", model, "--init", "{}", code=ExitCode.USAGE, says="--init gives the arguments")
    refuses("kernel", "extract", tmp_path / "net.py", code=ExitCode.INPUT_REFUSED, says="not one of the model files")


def test_every_tensor_of_a_whole_module_is_inspected_as_a_kernel(deconv, tmp_path):
    torch.save(nn.Sequential(nn.Conv2d(1, 4, 3)), tmp_path / "whole.pt")
    (file,) = deconv("inspect", tmp_path / "whole.pt", "--as", "kernel", "--json").report["files"]
    assert [entry["kernel"]["size"] for entry in file["entries"]] == [[3, 3], [4]]


@pytest.mark.parametrize("n_axes", [1, 3])
@pytest.mark.parametrize("is_whole", [True, False])
def test_a_layer_of_signals_or_stacks_goes_forward_and_back_with_its_bias(deconv, tmp_path, save, n_axes, is_whole):
    torch.manual_seed(0)
    model = nn.Sequential((nn.Conv1d if n_axes == 1 else nn.Conv3d)(4, 4, 3, padding=1))
    torch.save(model if is_whole else model.state_dict(), tmp_path / "model.pt")
    x = torch.rand(1, 4, *(6, 7, 8)[:n_axes])
    options = ["-k", tmp_path / "layer.safetensors", *([] if is_whole else ["--padding", "same"])]
    deconv("kernel", "extract", tmp_path / "model.pt", "--layer", "0", "-o", tmp_path / "layer.safetensors")
    deconv("forward", save("x", x.numpy()), *options, "-o", tmp_path / "y.npy")
    assert torch.allclose(torch.from_numpy(np.load(tmp_path / "y.npy")), model(x), atol=1e-6)
    deconv("invert", tmp_path / "y.npy", *options, "--lambda", "1e-12", "-o", tmp_path / "back.npy")
    assert torch.allclose(torch.from_numpy(np.load(tmp_path / "back.npy")), x, atol=1e-3)
