"""Layers of a model chosen by their names."""

import pytest
from torch import nn

from deconv_cli.chains.chain_layers import choose_layers
from deconv_cli.errors import UsageError


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
        ("stem,stem", "each once"),
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
