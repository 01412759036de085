"""Least squares through a max pooling."""

import copy

import torch
from cases import random
from torch import nn

from deconv_cli.operators.bounds import Bounds, PooledInputs
from deconv_cli.solvers import bounded_least_squares
from deconv_cli.solvers.bounded_least_squares import solve_pooled
from deconv_cli.solvers.iteration_log import IterationLog, StoppingRule


def relative_misfit(monkeypatch, n_projections: int) -> float:
    torch.manual_seed(0)
    front, pooling = nn.Conv2d(2, 16, 3, padding=1).double().requires_grad_(False), nn.MaxPool2d(3, 2, 1)
    x = random((2, 12, 12), 1)
    y = pooling(front(x[None]))[0]
    inputs = PooledInputs(pooling, Bounds(torch.where(y > 0, y, -torch.inf), y.clamp_min(0)), (12, 12))
    monkeypatch.setattr(bounded_least_squares, "MAX_PROJECTIONS", n_projections)
    log = IterationLog(StoppingRule(1e-8, 20000))
    found = solve_pooled(front, copy.deepcopy(front).float(), inputs, torch.zeros_like(x), log)
    made = pooling(front(found[None]))[0].clamp_min(0)
    assert log.n_inner > 0
    return float((made - y.clamp_min(0)).norm() / y.clamp_min(0).norm())


def test_projections_lead_past_local_minima(monkeypatch):
    assert relative_misfit(monkeypatch, 100) < 5e-3
    assert relative_misfit(monkeypatch, 0) > 5e-2
