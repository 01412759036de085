"""Kernels fitted under other losses, whose judge are the equations where they solve the problem; and the losses."""

from __future__ import annotations

import bad_losses
import pytest
import torch
from blurred_pictures import CURVE, sharp_picture
from cases import random
from torch.nn import functional

import deconv_cli
from deconv_cli import GradientFaultError, ShapeError, UsageError
from deconv_cli.kernels.loss_fit import FAINT, find_loss

SIZE = (5, 4)


def pair(noise=0.0, size=(30, 28), boundary="reflect", n_channels=1):
    """A scene with edges, and the same blurred by random taps with a strong middle."""
    scene = random((n_channels, *size)).cumsum(1).cumsum(2) / 4
    taps = 0.1 * random(SIZE, seed=3)
    taps[2, 1] = 1.0
    blurred = deconv_cli.forward(scene, taps, boundary=boundary)
    return scene, blurred + noise * float(blurred.std()) * random(tuple(blurred.shape), seed=1), taps


def relative(found, wanted):
    assert found.shape == wanted.shape
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"boundary": "reflect"},
        {"penalty": "laplacian", "lam": 1e-4},
        {"nonnegative": True, "unit_sum": True},
        pytest.param({"unit_sum": True}, marks=pytest.mark.exhaustive),
        pytest.param({"nonnegative": True}, marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_the_squared_loss_leads_to_what_is_fitted(choices):
    sharp, blurred, _ = pair(noise=0.02)
    fit = deconv_cli.fit_kernel([(sharp, blurred)], SIZE, **choices)
    found = deconv_cli.fit_kernel([(sharp, blurred)], SIZE, **choices, loss=lambda p, t: (p - t).square())
    assert relative(found.taps, fit.taps) < 1e-6
    assert found.lam == pytest.approx(fit.lam, rel=1e-6)
    assert found.residual == pytest.approx(fit.residual, rel=1e-9)
    assert found.held_out == pytest.approx(fit.held_out, rel=0.05)
    assert found.certificate < 1e-8
    assert found.errors is None
    assert not found.doubts(2)
    if choices.get("nonnegative"):
        assert float(found.taps.min()) >= 0


@pytest.mark.parametrize("size", [60, pytest.param(120, marks=pytest.mark.exhaustive)])
def test_counts_in_the_dark_reach_the_minimum(size):
    scene = CURVE.to_light(sharp_picture("camera")[:, :size, :size].double())
    side = 5 if size == 60 else 9
    line = torch.exp(-(torch.arange(side).double() - side // 2).square() / 2)
    taps = torch.outer(line, line) / line.sum().square()
    blurred = deconv_cli.forward(scene, taps, padding="valid")
    found = deconv_cli.fit_kernel([(scene, blurred)], (side, side), loss="poisson", unit_sum=True)
    assert found.certificate < 1e-3


@pytest.mark.parametrize(
    ("flux", "choices"),
    [(100, {}), pytest.param(3000, {"nonnegative": True, "unit_sum": True}, marks=pytest.mark.exhaustive)],
)
def test_counts_of_stars_on_black_count_by_their_noise(flux, choices):
    """Least squares hear the brightest stars alone; where it is dark the likelihood bends a thousand times more."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(64 * 64, (80,), generator=generator)
    light = flux * torch.rand(80, generator=generator, dtype=torch.float64) ** -0.7
    spot, taps = deconv_cli.make_kernel("gaussian:0.7"), deconv_cli.make_kernel("gaussian:1.2")
    scene = deconv_cli.forward(torch.zeros(64 * 64).double().index_add(0, places, light).reshape(1, 64, 64), spot)
    counts = torch.poisson(deconv_cli.forward(scene, taps, padding="valid").clamp_min(0), generator=generator)
    fit = deconv_cli.fit_kernel([(scene, counts)], tuple(taps.shape))
    found = deconv_cli.fit_kernel([(scene, counts)], tuple(taps.shape), loss="poisson", **choices)
    assert not found.doubts(2)
    assert relative(found.taps, taps) < 0.6 * relative(fit.taps, taps)


def test_channels_and_several_pairs():
    scene = pair(n_channels=2)[0]
    each = 0.2 * random((2, *SIZE))
    found = deconv_cli.fit_kernel([(scene, deconv_cli.forward(scene, each))], SIZE, channels="each", loss="huber:9")
    assert relative(found.taps, each) < 1e-7
    layer = 0.2 * random((3, 2, 3, 3))
    pairs = [(part, deconv_cli.forward(part, layer)) for part in (scene, scene.flip(1))]
    assert relative(deconv_cli.fit_kernel(pairs, (3, 3), channels="mix", loss="huber:9").taps, layer) < 1e-7


@pytest.mark.parametrize("loss", ["huber:0.05", pytest.param("l1", marks=pytest.mark.exhaustive)])
def test_robust_losses_do_not_heed_samples_that_are_far_off(loss):
    sharp, blurred, taps = pair(noise=0.01)
    hit = torch.rand(blurred.shape, generator=torch.Generator().manual_seed(0)) < 0.05
    blurred = torch.where(hit, blurred + 10 * blurred.std(), blurred)
    fit = deconv_cli.fit_kernel([(sharp, blurred)], SIZE)
    found = deconv_cli.fit_kernel([(sharp, blurred)], SIZE, loss=loss)
    assert not found.doubts(2)
    assert relative(found.taps, taps) < 0.2 * relative(fit.taps, taps)


def test_a_loss_of_ones_own():
    sharp, blurred, taps = pair(noise=0.01)
    as_tensor = deconv_cli.fit_kernel([(sharp, blurred)], SIZE, loss=lambda p, t: torch.log1p((p - t).square()))
    as_mean = deconv_cli.fit_kernel([(sharp, blurred)], SIZE, loss=lambda p, t: torch.log1p((p - t) ** 2).mean())
    assert relative(as_tensor.taps, taps) < 0.1
    assert relative(as_mean.taps, as_tensor.taps) < 1e-6


@pytest.mark.parametrize(
    ("loss", "verdict", "line"),
    [
        (bad_losses.detached, "DETACHED", "p.detach()"),
        (bad_losses.constant, "NOT-LOSS", ""),
        (bad_losses.wrong, "WRONG", "bad_losses.py"),
    ],
)
def test_a_gradient_that_is_wrong_or_does_not_arrive_is_refused_with_its_line(loss, verdict, line):
    sharp, blurred, _ = pair()
    with pytest.raises(GradientFaultError, match=f"be correct, but is {verdict}") as refused:
        deconv_cli.fit_kernel([(sharp, blurred)], SIZE, loss=loss)
    assert "bad_losses.py" in str(refused.value) or not line


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"loss": "l3"}, UsageError, "loss must be one of squared, l1, huber, poisson"),
        ({"loss": "l1:2"}, UsageError, "l1 takes no number"),
        ({"loss": "huber:-1"}, UsageError, "takes a positive number, its delta"),
        ({"loss": lambda p, t: (p - t).sum(-1)}, UsageError, "a tensor of their shape"),
        ({"loss": lambda p, t: -(p - t).square()}, UsageError, "must grow with the distance"),
        ({"pairs": [(random((1, 9, 9)),) * 2, (random((2, 9, 9)),) * 2]}, ShapeError, "pairs of 1 and 1 and 2 and 2"),
    ],
)
def test_refusals(change, error, says):
    given = {"pairs": [(random((1, 12, 12)), random((1, 12, 12)))], "size": (3, 3), "loss": "l1"} | change
    with pytest.raises(error, match=says):
        deconv_cli.fit_kernel(given.pop("pairs"), given.pop("size"), **given)


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
