"""Code that the user names, and the models built from it."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
from torch import nn

from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.models.model_files import build_model, load_named, read_model

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
