"""Smooth stand-ins for ReLU and max pooling."""

import pytest
import torch
from cases import random
from torch import nn
from torch.nn import functional

from deconv_cli.operators.smoothing import Smoothed, pooling_windows

POOLINGS = [
    nn.MaxPool1d(3, 2, 1),
    nn.MaxPool2d(3, 2, 1),
    nn.MaxPool2d(2, ceil_mode=True),
    nn.MaxPool2d((3, 2), (2, 1), (1, 0), (2, 1)),
    nn.MaxPool3d(2, 1),
]


@pytest.mark.parametrize("pool", POOLINGS, ids=str)
def test_windows_are_those_of_max_pooling(pool):
    n_axes = int(type(pool).__name__[-2])
    x = random((2, 3, *(11, 9, 8)[:n_axes]), seed=1)
    windows = pooling_windows(
        n_axes, x, pool.kernel_size, pool.stride, pool.padding, pool.dilation, ceil_mode=pool.ceil_mode
    )
    assert torch.equal(windows.amax(-1), pool(x))


@pytest.mark.parametrize(
    "function",
    [nn.ReLU(), nn.ReLU(inplace=True), torch.relu, functional.relu, torch.Tensor.relu, nn.MaxPool2d(2),
     lambda x: functional.max_pool2d(x, 2, stride=1), lambda x: torch.max_pool2d(x, 2), nn.PReLU(2, init=0.3).double()],
)  # fmt: skip
def test_a_stand_in_is_smooth_and_nears_the_function(function):
    x = random((1, 2, 8, 8), seed=2)
    true = function(x.clone())
    far, near = [], []
    for sharpness, found in ((2.0, far), (1e6, near)):
        with Smoothed(sharpness) as replaced:
            found.append(function(x.clone()))
        assert replaced.n_replaced == 1
    assert (far[0] - true).abs().max() > 1e-2
    assert (near[0] - true).abs().max() < 1e-5
    leaf = x.clone().requires_grad_()
    with Smoothed(2.0):
        function(leaf.clone()).sum().backward()
    assert (leaf.grad > 0).all()


def test_other_functions_are_left_alone():
    x = random((1, 2, 8, 8), seed=3)
    with Smoothed(1.0) as replaced:
        y = functional.max_pool2d(torch.tanh(x), 2, return_indices=True)[0]
    assert replaced.n_replaced == 0
    assert torch.equal(y, functional.max_pool2d(torch.tanh(x), 2))
