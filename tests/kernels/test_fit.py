"""Least squares for a kernel, against dense matrices."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import random
from torch.nn import functional

from deconv_cli import ShapeError
from deconv_cli.kernels.pair_equations import (
    Constraint,
    Pair,
    gather,
    misfit,
    solve_constrained,
    solve_ridge,
    variance_under_sum,
)
from deconv_cli.operators.boundary_rules import as_rule

SIZE = (3, 2)


def pair_of(n_inputs=2, n_outputs=3, boundary="unknown"):
    return Pair.of(random((n_inputs, 30, 9)), random((n_outputs, 30, 9), seed=1), SIZE, as_rule(boundary))


def dense(pair):
    columns = functional.unfold(pair.wide[None], SIZE)[0].T
    return columns, pair.y.flatten(1).T


@pytest.mark.parametrize("chunk_bytes", [2**26, 4000])
def test_the_normal_equations_of_all_rows_and_of_those_that_are_kept(monkeypatch, chunk_bytes):
    monkeypatch.setattr("deconv_cli.kernels.pair_equations.CHUNK_BYTES", chunk_bytes)
    pairs = [pair_of(), pair_of(boundary="reflect")]
    everything, kept = gather(pairs, SIZE)
    x, y = (torch.cat(parts) for parts in zip(*map(dense, pairs), strict=True))
    torch.testing.assert_close(everything.gram, x.T @ x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(everything.right, x.T @ y, rtol=1e-12, atol=1e-12)
    assert everything.n_data == len(x)
    assert 0.75 * len(x) < kept.n_data < 0.85 * len(x)
    taps = random((x.shape[1], 3), seed=2)
    gradient, square = misfit(pairs, SIZE, taps)
    torch.testing.assert_close(gradient, x.T @ (y - x @ taps), rtol=1e-11, atol=1e-11)
    assert square == pytest.approx(float((y - x @ taps).square().sum()))
    assert sum(misfit(pairs, SIZE, taps, held=held)[1] for held in (True, False)) == pytest.approx(square)


def test_an_image_of_a_size_that_no_kernel_makes():
    with pytest.raises(ShapeError, match="a kernel of 3×2 cannot turn an image of 10×9 into one of 7×9"):
        Pair.of(random((1, 10, 9)), random((1, 7, 9)), SIZE, as_rule("zero"))


def test_a_given_weight_solves_the_dense_problem():
    pairs = [pair_of()]
    x, y = dense(pairs[0])
    root = random((12, 12), seed=5)
    penalty = root @ root.T + torch.eye(12)
    everything, _ = gather(pairs, SIZE)
    ridge = solve_ridge(everything, penalty, lambda taps: misfit(pairs, SIZE, taps), lam=1e-2)
    inverse = torch.linalg.inv(x.T @ x + ridge.weight * penalty)
    torch.testing.assert_close(ridge.taps, inverse @ (x.T @ y), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(ridge.variance, inverse, rtol=1e-9, atol=1e-12)
    objective = (y - x @ ridge.taps).square().sum() + ridge.weight * (ridge.taps * (penalty @ ridge.taps)).sum()
    assert ridge.sigma**2 == pytest.approx(float(objective) / y.numel(), rel=1e-9)
    assert ridge.n_effective == pytest.approx(3 * float((inverse @ x.T @ x).trace()), rel=1e-9)


def test_the_likeliest_weight_maximizes_the_density_of_the_data():
    """Against the Gaussian density of y itself, with its covariance written out, σ at its best."""
    pair = pair_of(n_inputs=1, n_outputs=1)
    x, _ = dense(pair)
    pairs = [replace(pair, y=pair.y + (x @ random((6,), seed=7)).reshape(pair.y.shape))]
    x, y = dense(pairs[0])
    everything, _ = gather(pairs, SIZE)
    penalty = torch.eye(6, dtype=torch.float64)

    def log_density(weight):
        shape = torch.eye(len(x)).double() + x @ x.T / weight
        square = (y.T @ torch.linalg.solve(shape, y)).item()
        return -0.5 * len(y) * torch.log(torch.tensor(square)) - 0.5 * torch.logdet(shape)

    found = solve_ridge(everything, penalty, lambda taps: misfit(pairs, SIZE, taps))
    for factor in (0.1, 0.5, 2.0, 10.0):
        assert log_density(found.weight) > log_density(found.weight * factor)


@pytest.mark.parametrize("total", [None, 1.0])
def test_constrained_taps_satisfy_the_conditions_of_optimality(total):
    for seed in range(20):
        root = random((12, 9), seed=seed)
        hessian, right = root.T @ root, random((9,), seed=seed + 100)
        taps = solve_constrained(hessian, right, Constraint(nonnegative=True, total=total))
        slopes = hessian @ taps - right
        if total is not None:
            assert float(taps.sum()) == pytest.approx(total)
            slopes = slopes - slopes[taps > 0].mean()
        assert float(taps.min()) >= 0
        assert float(slopes.min()) > -1e-8
        assert float((slopes * taps).abs().max()) < 1e-8
        free = solve_constrained(hessian, right, Constraint(nonnegative=False, total=total))
        shift = torch.ones(9).double() if total is not None else torch.zeros(9).double()
        residual = hessian @ free - right
        assert float((residual - residual.mean() * shift).abs().max()) < 1e-8


def test_a_sum_that_is_known_has_no_variance():
    root = random((9, 6))
    variance = torch.linalg.inv(root.T @ root)
    found = variance_under_sum(variance)
    assert float(found.sum(1).abs().max()) < 1e-12
    assert float((variance - found).diagonal().min()) >= 0
