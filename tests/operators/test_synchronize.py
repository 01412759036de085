"""Numbers that are read from a device."""

import math

import pytest
import torch

from deconv_cli.operators import synchronize


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_single_value_that_is_not_finite_is_seen(bad, dtype):
    values = torch.linspace(-3, 3, 60, dtype=dtype).reshape(3, 4, 5)
    assert synchronize.are_finite(values)
    for place in (0, 31, 59):
        spoiled = values.clone()
        spoiled.view(-1)[place] = bad
        assert not synchronize.are_finite(spoiled)


def test_the_largest_numbers_and_none_at_all_are_finite():
    assert synchronize.are_finite(torch.full((9,), torch.finfo(torch.float32).max))
    assert synchronize.are_finite(torch.empty(0, 3))
