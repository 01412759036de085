"""Kernels fitted to pairs of pictures: right to the last digits without noise, inside their error bars with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from blurred_pictures import SAMPLES
from cases import random
from PIL import Image

import deconv_cli
from deconv_cli import MalformedInputError, ShapeError, UsageError
from deconv_cli.kernels.nonnegative_taps import without_negative_taps


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
