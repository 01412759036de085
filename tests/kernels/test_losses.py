"""Losses of kernels that are fitted: where they are least, and how they go on where their formula ends."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import deconv_cli
from deconv_cli.kernels.loss_functions import FAINT, find_loss

TARGET = torch.tensor([0.0, 0.3, 1.0, 5.0, 80.0], dtype=torch.float64)


@pytest.mark.parametrize("name", list(deconv_cli.LOSSES))
def test_a_loss_is_zero_at_the_data_and_nowhere_less(name):
    loss = find_loss(name)
    assert torch.allclose(loss(TARGET, TARGET), torch.zeros_like(TARGET), atol=1e-12)
    away = torch.linspace(-3, 90, 400, dtype=torch.float64)[:, None].expand(-1, 5)
    values = loss(away, TARGET.expand_as(away))
    assert float(values.min()) > -1e-12
    nearest = (away - TARGET).abs().argmin(0)
    assert float((away[values.argmin(0), range(5)] - away[nearest, range(5)]).abs().max()) < 0.5


def test_huber_is_torchs():
    away = torch.linspace(-3, 9, 50, dtype=torch.float64)
    expected = functional.huber_loss(away, torch.ones_like(away), delta=2.5, reduction="none")
    assert torch.allclose(find_loss("huber:2.5")(away, torch.ones_like(away)), expected)


def test_the_likelihood_of_counts_is_torchs_of_a_tenth_more_and_goes_on_below_zero():
    means = torch.linspace(0, 50, 60, dtype=torch.float64)[:, None]
    theirs, least = (
        functional.poisson_nll_loss(mean + FAINT, TARGET + FAINT, log_input=False, eps=0.0, reduction="none")
        for mean in (means, TARGET)
    )
    assert torch.allclose(find_loss("poisson")(means, TARGET), theirs - least, atol=1e-9)
    around = torch.linspace(-1, 1, 2001, dtype=torch.float64, requires_grad=True)
    values = find_loss("poisson")(around[:, None], TARGET)
    assert bool(values.isfinite().all())
    (slopes,) = torch.autograd.grad(values[:, 3].sum(), around)
    assert float(slopes.diff().abs().max()) < 1.0  # no jump
    assert bool((slopes.diff() > 0).all())
