"""The layers of a chain: chosen by name, and checked to follow one another in the forward pass of their module."""

import pytest
import torch
from torch import nn

from deconv_cli.chains.chain_layers import check_order, choose_layers
from deconv_cli.errors import UsageError


class Network(nn.Module):
    """Runs `a`, a ReLU that works in place, `b`, and a head that wants pictures of another size than is tried."""

    def __init__(self, between=None, head=7):
        super().__init__()
        self.a, self.relu, self.b = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3)
        self.head, self.between = nn.Linear(head, 2), between

    def forward(self, x):
        x = self.relu(self.a(x))
        if self.between is not None:
            x = self.between(x)
        return self.head(self.b(x).flatten(1))


def layers(module, *names):
    return [(name, getattr(module, name)) for name in names]


def test_children_that_follow_one_another_are_a_chain_even_if_the_head_fails():
    net = Network()
    assert check_order(net, layers(net, "a", "relu", "b"))
    assert check_order(net, layers(net, "a"))
    assert check_order(nn.Sequential(net.a, net.b), [("0", net.a), ("1", net.b)])


@pytest.mark.parametrize("between", [torch.tanh, torch.Tensor.tanh_, lambda x: x[..., 1:]])
def test_something_between_them_is_refused(between):
    net = Network(between)
    with pytest.raises(UsageError, match="between 'relu' and 'b'"):
        check_order(net, layers(net, "a", "relu", "b"))
    assert check_order(net, layers(net, "a", "relu"))


def test_a_layer_that_is_left_out_is_something_between():
    net = Network()
    with pytest.raises(UsageError, match="between 'a' and 'b'"):
        check_order(net, layers(net, "a", "b"))


def test_a_layer_that_is_left_out_of_a_sequence_is_named():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, 3), nn.Dropout(), nn.Sigmoid())
    with pytest.raises(UsageError, match=r"runs '1', a ReLU, between '0' and '2', .* a range with '\.\.'"):
        check_order(*choose_layers(net, "0,2"))
    assert check_order(*choose_layers(net, "2,4"))  # a dropout does nothing in evaluation
    assert check_order(*choose_layers(net, "0..2"))


def test_what_cannot_be_tried_is_not_certain():
    class Unrunnable(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    class Twice(Unrunnable):
        def forward(self, x):
            return self.b(self.b(self.a(x)))

    for net in (Unrunnable(), Twice()):
        assert not check_order(net, layers(net, "a", "b"))


def model():
    net = nn.Module()
    net.stem = nn.Conv2d(3, 4, 3)
    net.features = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(12)))
    net.act = nn.ReLU()
    return net


@pytest.mark.parametrize(
    ("text", "parent", "names"),
    [
        ("stem..act", "", ["stem", "features", "act"]),
        ("features..act", "", ["features", "act"]),
        ("stem", "", ["stem"]),
        ("stem,features", "", ["stem", "features"]),
        ("features.2..features.10", "features", [str(n) for n in range(2, 11)]),
        ("features.3, features.5", "features", ["3", "5"]),
    ],
)
def test_names_and_ranges(text, parent, names):
    net = model()
    owner, found = choose_layers(net, text)
    assert owner is net.get_submodule(parent)
    assert [name for name, _ in found] == names
    assert all(module is owner.get_submodule(name) for name, module in found)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("act..stem", "in the order in which they act"),
        ("stem,stem", "once each"),
        ("stem..features..act", "must be names of one module"),
        ("stem..", "must be names of one module"),
        ("", "must be names of one module"),
        ("stem,features.0", "must be names of one module"),
        ("stem..head", "no layer 'head'.*only stem, features, act"),
        ("body.0", "no module 'body'; it has stem, features, act"),
        ("features.12", "and.*more|only 0, 1"),
    ],
)
def test_what_the_model_has_not_is_refused(text, says):
    with pytest.raises(UsageError, match=says):
        choose_layers(model(), text)
