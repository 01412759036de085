"""The harness of `devices.py` notices what leaves a device; `tests/solvers` runs every operator under it."""

import pytest
import torch
from cases import random
from devices import DOUBLE, ForeignTensorError, check_without_numbers, replay

from deconv_cli.operators import synchronize


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
