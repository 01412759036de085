"""What the outputs of a max pooling say of its inputs."""

import pytest
import torch
from cases import random
from torch import nn

from deconv_cli.operators.bounds import Bounds, PooledInputs

POOLINGS = {
    "overlapping": (nn.MaxPool2d(3, 2, 1), (9, 8)),
    "dilated, rounded up": (nn.MaxPool2d((2, 3), dilation=2, ceil_mode=True), (11, 10)),
    "signal": (nn.MaxPool1d(2), (7,)),
    "stack": (nn.MaxPool3d(2, 1), (4, 5, 3)),
}


@pytest.mark.parametrize("name", POOLINGS)
def test_whatever_is_within_the_bounds_is_pooled_to_the_outputs(name: str) -> None:
    pooling, size = POOLINGS[name]
    z = random((3, *size), 1)
    y = pooling(z)
    inputs = PooledInputs(pooling, Bounds.exactly(y), size)
    assert inputs.n_inputs == z.numel()
    for estimate in (z, random(z.shape, 2), torch.zeros_like(z).flatten()):
        bounds = inputs.bounds_at(estimate)
        assert torch.equal(pooling(bounds.nearest(random(z.shape, 3))), y)
    own = inputs.bounds_at(z)
    assert torch.equal(own.nearest(z), z)


def test_windows_with_one_output_share_the_input_that_it_comes_from() -> None:
    z = torch.tensor([[0.0, 1.0, 5.0, 2.0, 3.0]])
    pooling = nn.MaxPool1d(3, 2)
    inputs = PooledInputs(pooling, Bounds.exactly(pooling(z)), (5,))
    bounds = inputs.bounds_at(torch.tensor([[9.0, 9.0, 0.0, 9.0, 9.0]]))
    assert bounds.lower[0, 2] == bounds.upper[0, 2] == 5.0
    assert not bounds.known[0, [0, 1, 3, 4]].any()


def test_outputs_that_are_bounds_alone_bound_the_inputs() -> None:
    pooling = nn.MaxPool1d(2)
    y = torch.tensor([[0.0, 3.0]])
    inputs = PooledInputs(pooling, Bounds(torch.where(y > 0, y, -torch.inf), y), (4,))
    bounds = inputs.bounds_at(torch.tensor([[1.0, 2.0, 4.0, 1.0]]))
    assert bounds.upper.tolist() == [[0.0, 0.0, 3.0, 3.0]]
    assert bounds.lower.tolist() == [[-torch.inf, -torch.inf, 3.0, -torch.inf]]
