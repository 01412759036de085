"""Inverses of activations: values between the ends of their range, and bounds at them."""

import math

import pytest
import torch
from torch import nn

from deconv_cli.operators.bounds import Bounds, activation_of

EPS = torch.finfo(torch.float64).eps
INCREASING = [
    *(nn.LeakyReLU(0.2), nn.PReLU(init=0.3), nn.PReLU(3), nn.ELU(), nn.ELU(0.7), nn.CELU(1.4), nn.SELU(), nn.Tanh()),
    *(nn.Sigmoid(), nn.Softplus(), nn.Softplus(2.0), nn.LogSigmoid(), nn.Softsign(), nn.Hardsigmoid()),
    *(nn.Hardtanh(-4.5, 5.0), nn.ReLU6(), nn.ReLU()),
]


@pytest.mark.parametrize("module", INCREASING, ids=str)
def test_an_increasing_activation_is_undone(module):
    module = module.double()
    activation = activation_of(module, EPS)
    x = torch.linspace(-2.5, 2.5, 90, dtype=torch.float64).reshape(3, 30)[:, torch.randperm(30)]
    with torch.no_grad():
        y = module(x[None])[0]
    found = activation.undo(Bounds.exactly(y))
    assert activation.is_monotone
    assert activation.n_impossible(Bounds.exactly(y)) == 0
    inside = (y > activation.low) & (y < activation.high)
    assert inside.sum() >= 40
    assert torch.equal(found.known, inside)
    torch.testing.assert_close(found.upper[inside], x[inside], rtol=1e-9, atol=1e-9)
    assert (found.lower <= x + 1e-9).all()
    assert (found.upper >= x - 1e-9).all()


@pytest.mark.parametrize("module", [nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.Mish(), nn.Hardswish()], ids=str)
def test_a_gate_is_undone_from_zero_upwards(module):
    activation = activation_of(module, EPS)
    x = torch.linspace(0.01, 20, 50, dtype=torch.float64)
    found = activation.undo(Bounds.exactly(module(x)))
    assert not activation.is_monotone
    torch.testing.assert_close(found.lower, x, rtol=1e-12, atol=1e-12)
    below = activation.undo(Bounds.exactly(module(-x[:5])))
    assert (below.lower == -math.inf).all()
    assert (below.upper == 0).all()


@pytest.mark.parametrize(
    ("module", "far", "bounds"),
    [
        (nn.ReLU(), -3.0, (-math.inf, 0.0)),
        (nn.ReLU6(), 7.0, (6.0, math.inf)),
        (nn.Hardtanh(), -2.0, (-math.inf, -1.0)),
        (nn.Tanh(), 30.0, (None, math.inf)),
        (nn.Sigmoid(), 60.0, (None, math.inf)),
        (nn.ELU(), -60.0, (-math.inf, None)),
    ],
)
def test_a_value_at_the_end_of_the_range_is_a_bound(module, far, bounds):
    x = torch.tensor([far], dtype=torch.float64)
    found = activation_of(module, EPS).undo(Bounds.exactly(module(x)))
    assert not found.known.any()
    for end, expected in zip((found.lower, found.upper), bounds, strict=True):
        assert expected is None or float(end) == expected
    assert found.lower <= x <= found.upper


@pytest.mark.parametrize("slopes", [(-0.5, 0.2, 0.0), (-1.0, -0.1, -2.0)])
def test_a_folded_prelu_leaves_its_inputs_between_two(slopes):
    module = nn.PReLU(3).double()
    module.weight.data = torch.tensor(slopes).double()
    activation = activation_of(module, EPS)
    x = torch.linspace(-2, 2, 21, dtype=torch.float64).expand(3, -1)
    with torch.no_grad():
        y = module(x[None])[0]
    found = activation.undo(Bounds.exactly(y))
    assert not activation.says_all(Bounds.exactly(y))
    assert (found.lower <= x + 1e-12).all()
    assert (found.upper >= x - 1e-12).all()
    is_increasing = (torch.tensor(slopes) > 0)[:, None].expand_as(x)
    assert found.known[is_increasing].all()
    negative = (torch.tensor(slopes) < 0)[:, None].expand_as(x) & (y > 0)
    with torch.no_grad():
        torch.testing.assert_close(module(found.lower[None])[0][negative], y[negative])
        torch.testing.assert_close(module(found.upper[None])[0][negative], y[negative])


def test_bounds_stay_bounds_and_what_no_input_gives_is_counted():
    tanh = activation_of(nn.Tanh(), EPS)
    y = Bounds(torch.tensor([-math.inf, 0.1, 1.5]), torch.tensor([0.5, 0.1, 1.5]))
    found = tanh.undo(y)
    assert found.lower[0] == -math.inf
    torch.testing.assert_close(found.upper[0], torch.tensor(0.5).atanh())
    assert tanh.n_impossible(y) == 1
    assert found.upper[2] == math.inf


def test_what_does_not_increase_has_no_inverse():
    assert activation_of(nn.LeakyReLU(-0.1), EPS) is None
    assert activation_of(nn.Softmax(1), EPS) is None
