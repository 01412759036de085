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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_medians_of_odd_and_even_numbers_of_entries_in_any_order_of_memory(dtype):
    values = torch.randn(6, 9, 11, generator=torch.Generator().manual_seed(0), dtype=dtype)
    parts = [values, values[:, 1:8:2].transpose(0, 2), values[0, 0, :1], values[2, 3, :2]]
    assert synchronize.medians(parts) == [float(part.median()) for part in parts]
    assert synchronize.medians([]) == []
