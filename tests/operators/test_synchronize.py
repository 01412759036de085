"""Numbers that are read from a device; the harness of `devices.py` notices what leaves it."""

import math

import pytest
import torch
from cases import random
from devices import DOUBLE, ForeignTensorError, check_without_numbers, replay

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


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        pytest.param(lambda x: x + torch.ones(3, 4), ForeignTensorError, id="another-device"),
        pytest.param(lambda x: x + torch.arange(4), ForeignTensorError, id="indices"),
        pytest.param(lambda x: x * torch.tensor(2.0), ForeignTensorError, id="single-number"),
        pytest.param(lambda x: x[torch.tensor([0, 1])], ForeignTensorError, id="index"),
        pytest.param(lambda x: x + x.cpu().to(x.device), ForeignTensorError, id="there-and-back"),
        pytest.param(lambda x: x.numpy(), RuntimeError, id="numpy"),
        pytest.param(lambda x: x * float(x.sum()), RuntimeError, id="number"),
        pytest.param(lambda x: x if x.any() else -x, RuntimeError, id="branch"),
        pytest.param(lambda x: x[x > 0], RuntimeError, id="mask"),
    ],
)
def test_the_harness_notices(mistake, error):
    with pytest.raises(error):
        replay(mistake, (random((3, 4)),), [], "cuda", frozenset())


def test_the_harness_notices_double_precision():
    with pytest.raises(ForeignTensorError, match="float64"):
        check_without_numbers(lambda x: x.double().float(), random((3, 4)).float(), device="mps", barred=DOUBLE)


def test_the_harness_follows_what_the_host_read():
    def branch(x):
        return x[synchronize.places(x > 0)] if synchronize.holds_anywhere(x > 0) else x.double()

    positive = check_without_numbers(branch, torch.tensor([1.0, -1.0, 2.0]))
    assert [name for name, _ in positive] == ["holds_anywhere", "places"]
    assert check_without_numbers(branch, torch.tensor([-1.0])) == [("holds_anywhere", False)]
