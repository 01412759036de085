"""Kernels fitted to pairs of pictures, and their least squares against dense matrices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from blurred_pictures import SAMPLES
from cases import random
from PIL import Image
from torch.nn import functional

import deconv_cli
from deconv_cli import MalformedInputError, ShapeError, UsageError
from deconv_cli.kernels.nonnegative_taps import without_negative_taps
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


def photograph(name="camera", size=100):
    array = np.asarray(Image.open(SAMPLES / f"{name}.png").convert("RGB" if name == "astronaut" else "L"))
    image = torch.from_numpy(array.copy()).double()[40 : 40 + size, 60 : 60 + size]
    return image[None] if image.ndim == 2 else image.movedim(-1, 0)


def centered(taps, size):
    wide = torch.zeros(*(n + 2 * k for n, k in zip(size, taps.shape, strict=True)), dtype=torch.float64)
    start = [(n - k) // 2 for n, k in zip(wide.shape, taps.shape, strict=True)]
    wide[tuple(slice(a, a + k) for a, k in zip(start, taps.shape, strict=True))] = taps
    start = [(n - k) // 2 for n, k in zip(wide.shape, size, strict=True)]
    return wide[tuple(slice(a, a + k) for a, k in zip(start, size, strict=True))]


def relative(found, wanted):
    assert found.shape == wanted.shape
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("boundary", list(deconv_cli.BOUNDARIES))
@pytest.mark.parametrize("padding", ["same", "valid", "full"])
def test_a_pair_without_noise_gives_the_kernel(boundary, padding):
    x, kernel = photograph(size=40), random((4, 5))
    made_with = "replicate" if boundary == "unknown" else boundary
    y = deconv_cli.forward(x, kernel, padding=padding, boundary=made_with)
    fit = deconv_cli.fit_kernel([(x, y)], (4, 5), boundary=boundary)
    assert relative(fit.taps, kernel) < 1e-8
    assert fit.residual < 1e-9
    assert fit.held_out < 1e-8


def test_taps_lie_within_their_error_bars_as_often_as_they_should():
    inside = []
    for seed, formula in enumerate(["gaussian:1.5", "disk:3", "motion:7@30", "box:5", "gaussian:1", "moffat:2@3"]):
        kernel = centered(deconv_cli.make_kernel(formula), (9, 9))
        x = photograph()
        y = deconv_cli.forward(x, kernel, padding="valid")
        sigma = 0.01 * float(y.std())
        fit = deconv_cli.fit_kernel([(x, y + sigma * random(tuple(y.shape), seed=seed))], (9, 9))
        assert fit.sigma[0] == pytest.approx(sigma, rel=0.03)
        inside.append(((fit.taps - kernel).abs() < fit.errors).double().mean())
    assert abs(float(torch.stack(inside).mean()) - 0.68) < 0.08, inside


def test_several_pairs_and_channels():
    x = photograph("astronaut", 60)
    kernels = random((3, 4, 3))
    each = deconv_cli.fit_kernel([(x, deconv_cli.forward(x, kernels))], (4, 3), channels="each")
    assert relative(each.taps, kernels) < 1e-8
    layer = random((4, 3, 3, 3))
    mixed = deconv_cli.fit_kernel([(x, deconv_cli.forward(x, layer))], (3, 3), channels="mix")
    assert relative(mixed.taps, layer) < 1e-8
    assert mixed.errors.shape == layer.shape
    y = deconv_cli.forward(x, kernels[0]) + random(tuple(x.shape))
    shared = deconv_cli.fit_kernel([(x, y)], (4, 3))
    alone = deconv_cli.fit_kernel([(x[:1], y[:1])], (4, 3))
    again = deconv_cli.fit_kernel([(x[i : i + 1], y[i : i + 1]) for i in range(3)], (4, 3))
    batch = deconv_cli.fit_kernel([(x[:, None], y[:, None])], (4, 3))
    assert torch.equal(shared.taps, again.taps)
    assert torch.equal(shared.taps, batch.taps)
    assert float(shared.errors.mean()) < 0.8 * float(alone.errors.mean())


@pytest.mark.parametrize("shape", [(5,), (2, 3, 3)])
def test_signals_and_stacks(shape):
    x, kernel = random((1, *((60,) if len(shape) == 1 else (8, 9, 10)))), random(shape, seed=1)
    y = deconv_cli.forward(x, kernel, dimensions=len(shape), boundary="circular")
    fit = deconv_cli.fit_kernel([(x, y)], shape, boundary="circular")
    assert relative(fit.taps, kernel) < 1e-8


def test_constraints_hold_and_help():
    kernel, x = centered(without_negative_taps(deconv_cli.make_kernel("motion:5@20"), 2), (9, 9)), photograph(size=60)
    y = deconv_cli.forward(x, kernel, padding="valid")
    y = y + 0.1 * float(y.std()) * random(tuple(y.shape))
    free = deconv_cli.fit_kernel([(x, y)], (9, 9))
    bound = deconv_cli.fit_kernel([(x, y)], (9, 9), nonnegative=True, unit_sum=True)
    assert float(free.taps.min()) < 0
    assert float(bound.taps.min()) >= 0
    assert float(bound.taps.sum()) == pytest.approx(1.0, abs=1e-9)
    assert relative(bound.taps, kernel) < relative(free.taps, kernel)
    assert float((free.errors - bound.errors).min()) >= 0


def test_a_support_that_is_too_small_is_told():
    kernel, x = deconv_cli.make_kernel("disk:3"), photograph(size=60)
    y = deconv_cli.forward(x, kernel, padding="same", boundary="reflect")
    y = y + 0.01 * float(y.std()) * random(tuple(y.shape))
    assert deconv_cli.fit_kernel([(x, y)], (5, 5)).is_cut(2)
    assert not deconv_cli.fit_kernel([(x, y)], (9, 9), boundary="reflect").is_cut(2)
    clean = deconv_cli.forward(x, kernel, boundary="reflect")
    assert not deconv_cli.fit_kernel([(x, clean)], (11, 11), boundary="reflect").is_cut(2)


def test_a_pair_in_the_wrong_order_is_noted_where_little_is_left_over():
    x = photograph("astronaut", 100)[:1]
    y = deconv_cli.forward(x, deconv_cli.make_kernel("gaussian:0.7"), boundary="reflect")
    x, y = (image + 0.5 * random(tuple(x.shape), seed=seed) for seed, image in enumerate((x, y)))
    assert deconv_cli.fit_kernel([(x, y)], (9, 9)).notes(2) == ()
    swapped = deconv_cli.fit_kernel([(y, x)], (9, 9))
    assert swapped.doubts(2) == ()
    (note,) = swapped.notes(2)
    assert "swap the pictures" in note


def test_a_hopeless_support_a_swapped_pair_and_pictures_of_two_scenes_are_doubted():
    kernel, x = deconv_cli.make_kernel("disk:3"), photograph(size=60)
    y = deconv_cli.forward(x, kernel, boundary="reflect") + random((1, 60, 60))
    assert not deconv_cli.fit_kernel([(x, y)], (9, 9)).doubts(2)
    for pair, size, says in (((x, y), (3, 3), "choose a larger size"), ((y, x), (9, 9), "swap the pictures")):
        (doubt,) = deconv_cli.fit_kernel([pair], size).doubts(2)
        assert says in doubt
    (doubt,) = deconv_cli.fit_kernel([(x, photograph("astronaut", 60)[:1])], (9, 9)).doubts(2)
    assert "show one scene" in doubt


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"size": (0, 3)}, UsageError, "size must hold positive whole numbers"),
        ({"size": 3}, UsageError, "size must hold one number"),
        ({"size": (50, 50)}, ShapeError, "does not fit"),
        ({"channels": "all"}, UsageError, "channels must be one of shared, each, mix"),
        ({"channels": "mix", "unit_sum": True}, UsageError, "do not mix channels"),
        ({"lam": -1.0}, UsageError, "lam must be a positive number"),
        ({"pairs": []}, UsageError, "there are none"),
        ({"pairs": [(torch.zeros(1, 9, 9), torch.zeros(2, 9, 9))]}, ShapeError, "the same number of channels"),
        ({"pairs": [(torch.zeros(9, 9), torch.zeros(9, 9))]}, ShapeError, "with 2 axes of space"),
        ({"pairs": [(torch.zeros(2, 1, 9, 9), torch.zeros(3, 1, 9, 9))]}, ShapeError, "in equal numbers"),
        ({"pairs": [(torch.zeros(1, 9, 9), random((1, 9, 9)))]}, MalformedInputError, "zero everywhere"),
        ({"pairs": [(torch.full((1, 9, 9), torch.nan), torch.zeros(1, 9, 9))]}, MalformedInputError, "NaN"),
    ],
)
def test_refusals(change, error, says):
    given = {"pairs": [(random((1, 9, 9)), random((1, 9, 9)))], "size": (3, 3)} | change
    with pytest.raises(error, match=says):
        deconv_cli.fit_kernel(given.pop("pairs"), given.pop("size"), **given)


TAPS = (3, 2)


def pair_of(n_inputs=2, n_outputs=3, boundary="unknown"):
    return Pair.of(random((n_inputs, 30, 9)), random((n_outputs, 30, 9), seed=1), TAPS, as_rule(boundary))


def dense(pair):
    columns = functional.unfold(pair.wide[None], TAPS)[0].T
    return columns, pair.y.flatten(1).T


@pytest.mark.parametrize("chunk_bytes", [2**26, 4000])
def test_the_normal_equations_of_all_rows_and_of_those_that_are_kept(monkeypatch, chunk_bytes):
    monkeypatch.setattr("deconv_cli.kernels.pair_equations.CHUNK_BYTES", chunk_bytes)
    pairs = [pair_of(), pair_of(boundary="reflect")]
    everything, kept = gather(pairs, TAPS)
    x, y = (torch.cat(parts) for parts in zip(*map(dense, pairs), strict=True))
    torch.testing.assert_close(everything.gram, x.T @ x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(everything.right, x.T @ y, rtol=1e-12, atol=1e-12)
    assert everything.n_data == len(x)
    assert 0.75 * len(x) < kept.n_data < 0.85 * len(x)
    taps = random((x.shape[1], 3), seed=2)
    gradient, square = misfit(pairs, TAPS, taps)
    torch.testing.assert_close(gradient, x.T @ (y - x @ taps), rtol=1e-11, atol=1e-11)
    assert square == pytest.approx(float((y - x @ taps).square().sum()))
    assert sum(misfit(pairs, TAPS, taps, held=held)[1] for held in (True, False)) == pytest.approx(square)


def test_an_image_of_a_size_that_no_kernel_makes():
    with pytest.raises(ShapeError, match="a kernel of 3×2 cannot turn an image of 10×9 into one of 7×9"):
        Pair.of(random((1, 10, 9)), random((1, 7, 9)), TAPS, as_rule("zero"))


def test_a_given_weight_solves_the_dense_problem():
    pairs = [pair_of()]
    x, y = dense(pairs[0])
    root = random((12, 12), seed=5)
    penalty = root @ root.T + torch.eye(12)
    everything, _ = gather(pairs, TAPS)
    ridge = solve_ridge(everything, penalty, lambda taps: misfit(pairs, TAPS, taps), lam=1e-2)
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
    everything, _ = gather(pairs, TAPS)
    penalty = torch.eye(6, dtype=torch.float64)

    def log_density(weight):
        shape = torch.eye(len(x)).double() + x @ x.T / weight
        square = (y.T @ torch.linalg.solve(shape, y)).item()
        return -0.5 * len(y) * torch.log(torch.tensor(square)) - 0.5 * torch.logdet(shape)

    found = solve_ridge(everything, penalty, lambda taps: misfit(pairs, TAPS, taps))
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
