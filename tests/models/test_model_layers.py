"""Layers of models: listed, written and run as the network runs them; models built from code that the user names."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import deconv_cli
from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.models.kernel_files import read_kernel
from deconv_cli.models.model_files import build_model, load_named, read_model

PNET = Path(__file__).parents[2] / "sample_images" / "pnet.pt"


class Mixed(nn.Module):
    """Every kind of convolution, some nested, and layers that are none."""

    def __init__(self, width=4):
        super().__init__()
        self.first = nn.Conv1d(2, 3, 5, padding=2, bias=False)
        self.body = nn.Sequential(
            nn.Conv2d(3, width, (3, 2), stride=(2, 1), dilation=2, padding="same" if width < 0 else 1, groups=1),
            nn.BatchNorm2d(width),
            nn.ConvTranspose2d(width, 6, 3, stride=2, padding=1, output_padding=(1, 0), groups=2),
        )
        self.volume = nn.Conv3d(1, 2, 2, padding_mode="circular", padding=1)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.body(x)


NAMES = ["first", "body.0", "body.2", "volume"]


@pytest.fixture
def mixed():
    torch.manual_seed(0)
    return Mixed()


def described(layers):
    return {layer.name: layer.describe() for layer in layers}


def test_a_module_tells_all_of_its_geometry(code, save, mixed):
    place = code("")
    source = Path(__file__).read_text(encoding="utf-8").split("class Mixed")[1].split("\n\n\nNAMES")[0]
    place.write_text(f"import torch\nfrom torch import nn\n\nclass Mixed{source}")
    named = f"{place}:Mixed"
    path = save(mixed.state_dict())
    layers = deconv_cli.list_layers(path, model=named)
    assert [layer.name for layer in layers] == NAMES
    found = described(layers)
    assert found["body.0"] == {
        **{"name": "body.0", "kind": "Conv2d", "shape": [4, 3, 3, 2], "bias": True, "transposed": False},
        **{"stride": [2, 1], "padding": [1, 1], "dilation": [2, 2], "groups": 1, "padding_mode": "zeros"},
    }
    transposed = found["body.2"]
    assert (transposed["transposed"], transposed["output_padding"], transposed["groups"]) == (True, [1, 0], 2)
    assert found["volume"]["padding_mode"] == "circular"
    assert found["first"]["shape"] == [3, 2, 5]
    assert not found["first"]["bias"]
    layer = deconv_cli.load_layer(path, "body.2", model=named)
    assert torch.equal(layer.weight, mixed.body[2].weight)
    assert torch.equal(layer.bias, mixed.body[2].bias)


def test_a_state_dict_holds_weights_alone(save, network):
    plain = deconv_cli.list_layers(save(network.state_dict()))
    assert [(layer.name, layer.kind, layer.geometry) for layer in plain] == [("0", None, {}), ("3", None, {})]
    assert [layer.bias is None for layer in plain] == [False, True]


def test_refusals(save, network, refused):
    path = save(network.state_dict())
    refused(UsageError, deconv_cli.load_layer, path, says=["holds 2 convolutions", "choose among 0, 3"])
    refused(UsageError, deconv_cli.load_layer, path, "5", says="no convolution named '5'")
    refused(MalformedInputError, deconv_cli.load_layer, save({"a": torch.ones(3)}, "no.pt"), says="holds none")
    state = network.state_dict()
    state["0.weight"][0, 0, 0, 0] = float("nan")
    refused(MalformedInputError, deconv_cli.load_layer, save(state, "nan.pt"), "0", says="NaN")


def test_what_is_written_is_read_as_the_layer(save, network, tmp_path):
    layer = deconv_cli.load_layer(save(network), "0")
    path = tmp_path / "layer.safetensors"
    deconv_cli.save_layer(layer, path)
    again = deconv_cli.load_layer(path)
    assert (again.name, torch.equal(again.weight, layer.weight)) == ("0", True)
    read = read_kernel(path)
    assert torch.equal(read.kernel, layer.weight)
    assert torch.equal(read.bias, layer.bias)
    with pytest.raises(UsageError, match="exists"):
        deconv_cli.save_layer(layer, path)
    deconv_cli.save_layer(layer, path, force=True)


def test_a_trained_network_runs_layer_by_layer_and_backwards():
    """P-Net to its third convolution, then each layer undone from what it gave."""
    layers = {layer.name: layer for layer in deconv_cli.list_layers(PNET)}
    assert list(layers) == ["conv1", "conv2", "conv3", "conv4_1", "conv4_2"]
    slopes = torch.load(PNET, weights_only=True)
    x = torch.rand(1, 3, 20, 18, dtype=torch.float64)
    for name in ("conv1", "conv2", "conv3"):
        weight, bias = layers[name].weight.double(), layers[name].bias.double()
        y = deconv_cli.forward(x, weight, padding="valid", bias=bias)
        torch.testing.assert_close(y, functional.conv2d(x, weight, bias), rtol=1e-12, atol=1e-12)
        back = deconv_cli.invert(y, weight, padding="valid", bias=bias, lam=0.0)
        again = deconv_cli.forward(back.image, weight, padding="valid", bias=bias)
        assert float((again - y).norm() / y.norm()) < 1e-6
        if name == "conv1":
            assert float((back.image - x).norm() / x.norm()) < 1e-6
        x = functional.prelu(y, slopes[f"prelu{name[-1]}.weight"].double())
        x = functional.max_pool2d(x, 2, 2, ceil_mode=True) if name == "conv1" else x


NET = """
class Net(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.head = nn.Linear(2, width)
def make(width):
    return Net(width)
def number():
    return 3
model = Net(5)
constant = 3
"""


@pytest.fixture
def net(code):
    path = code(NET)
    return lambda name: load_named(f"{path}:{name}", "model")


class TestNaming:
    def test_a_file_is_imported_once(self, net):
        assert net("Net").module is net("make").module
        assert net("Net").value is net("Net").module.Net

    def test_a_package(self):
        assert load_named("torch.nn:Linear", "model").value is nn.Linear

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("Net", "must be file.py:Name"),
            ("net.py:", "must be file.py:Name"),
            ("net.py:a b", "must be file.py:Name"),
            ("no_such.py:Net", "does not exist"),
            ("no_such_package:Net", "cannot be imported (ModuleNotFoundError"),
            ("torch.nn:Nothing", "holds no 'Nothing'"),
        ],
    )
    def test_what_cannot_be_found(self, refused, text, says):
        refused(UsageError, load_named, text, "loss", says=[f"loss{':' if 'must' not in says else ''} ", says])

    def test_code_that_fails(self, code, refused):
        path = code("raise ValueError('the moon is full')\n")
        refused(UsageError, load_named, f"{path}:Net", "model", says="(ValueError: “the moon is full”)")
        assert path.stem not in sys.modules

    def test_neither_class_nor_function(self, net, refused):
        refused(UsageError, net, "constant", says="must be a class, a function or a model, but is a int")


class TestBuilding:
    @pytest.mark.parametrize(
        ("name", "init", "width"), [("Net", None, 3), ("Net", {"width": 4}, 4), ("Net", [6], 6), ("make", [7], 7)]
    )
    def test_a_class_or_a_function(self, net, name, init, width):
        assert build_model(net(name), init, None).head.out_features == width

    def test_an_instance(self, net, refused, save):
        named = net("model")
        assert build_model(named, None, None) is named.value
        state = {name: torch.ones_like(tensor) for name, tensor in named.value.state_dict().items()}
        assert bool((build_model(named, None, read_model(save(state))).head.weight == 1).all())
        refused(UsageError, build_model, named, {"width": 3}, None, says=["a model already", "leave out init="])

    def test_what_fails_or_gives_no_module(self, net, refused):
        refused(UsageError, build_model, net("Net"), {"depth": 3}, None, says=["could not be built", "depth", "init"])
        refused(UsageError, build_model, net("number"), None, None, says="should give a torch.nn.Module")


class TestWeights:
    def test_they_must_fit(self, net, save, refused):
        state = {"head.weight": torch.zeros(3, 2), "head.bias": torch.zeros(3)}
        assert not bool(build_model(net("Net"), None, read_model(save(state))).head.weight.any())
        for changed, says in (
            ({"head.weight": torch.zeros(3, 2)}, "lacks 'head.bias'"),
            (state | {"more": torch.zeros(1)}, "holds 'more', which the model does not have"),
            (state | {"head.bias": torch.zeros(4)}, "'head.bias' is of shape (4,), but the model has (3,)"),
            ({f"a{n}": torch.zeros(1) for n in range(6)}, "'a0', 'a1', 'a2', 'a3' and 2 more"),
        ):
            refused(MalformedInputError, build_model, net("Net"), None, read_model(save(changed)), says=says)

    def test_the_prefix_of_data_parallel_is_dropped(self, net, save):
        state = {f"module.{name}": tensor for name, tensor in net("model").value.state_dict().items()}
        built = build_model(net("Net"), [5], read_model(save(state)))
        assert torch.equal(built.head.weight, net("model").value.head.weight)

    def test_tied_weights_may_be_stored_once(self, code, save):
        path = code(
            "class Tied(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)\n"
            "        self.b.weight = self.a.weight\n"
        )
        for stored, other in itertools.permutations("ab"):
            state = {f"{stored}.weight": torch.eye(2)}
            built = build_model(load_named(f"{path}:Tied", "model"), None, read_model(save(state)))
            assert torch.equal(getattr(built, other).weight, torch.eye(2))
