"""Finite differences alone: what agrees, what differs, what is a corner, and how certain that is."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace

import pytest
import torch

from deconv_cli.gradients import finite_difference_search as search
from deconv_cli.gradients import finite_differences as scalar_function
from deconv_cli.gradients.finite_difference_search import compare_tensors
from deconv_cli.gradients.finite_differences import Direction, Outcome, ScalarFunction, TensorGradient, compare_along
from deconv_cli.gradients.inputs import InputSpec


def probe_of(function, x, gradient, **options):
    moved = TensorGradient("x", x, gradient)
    evaluated = ScalarFunction(lambda: float(function(x)), **options)
    evaluated.measure_noise([moved])
    return evaluated, moved


def direction(moved, seed=0):
    return [Direction.random(moved, torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_smooth_function_agrees_and_the_error_bar_holds(scale, offset):
    x = torch.randn(50, dtype=torch.float64)
    weights = torch.randn(50, dtype=torch.float64)

    def function(x):
        return scale * (offset + (weights * x.sin()).sum())

    evaluated, moved = probe_of(function, x, scale * weights * x.cos())
    estimate = compare_along(evaluated, direction(moved))
    assert estimate.outcome is Outcome.AGREES
    assert estimate.resolution < 1e-4
    assert abs(estimate.numeric - estimate.autograd) <= 5 * estimate.error_bar + 3e-6 * abs(estimate.autograd)


def test_a_gradient_that_drowns_in_noise_is_not_called_right():
    """A slope of 1e-15 beside a value of one cannot be seen in float64."""
    x = torch.randn(10, dtype=torch.float64)
    evaluated, moved = probe_of(lambda x: 1 + 1e-15 * x.sum(), x, torch.full((10,), 2e-15, dtype=torch.float64))
    assert compare_tensors(evaluated, [moved])["x"].outcome is Outcome.UNSURE


def test_many_kinks_need_the_smallest_steps():
    generator = torch.Generator().manual_seed(0)
    offsets = 1e-4 * torch.rand(20000, generator=generator, dtype=torch.float64)
    x = torch.ones(1, dtype=torch.float64)
    signs = torch.sign(torch.randn(20000, generator=generator, dtype=torch.float64))

    def function(x):
        return (signs * (x - 1 - offsets + 5e-5).relu()).sum()

    gradient = (signs * (x - 1 - offsets + 5e-5 > 0)).sum().reshape(1)
    evaluated, moved = probe_of(function, x, gradient)
    assert compare_tensors(evaluated, [moved])["x"].outcome is Outcome.AGREES


@pytest.mark.parametrize(
    ("slope", "outcome"),
    [(0.0, Outcome.KINK), (0.3, Outcome.KINK), (1.0, Outcome.KINK), (2.0, Outcome.DIFFERS), (-1.0, Outcome.DIFFERS)],
)
def test_a_slope_between_the_two_sides_is_a_kink_and_another_is_wrong(slope, outcome):
    x = torch.zeros(1, dtype=torch.float64)
    evaluated, moved = probe_of(lambda x: x.relu().sum() + 3, x, torch.full((1,), slope, dtype=torch.float64))
    assert compare_along(evaluated, [Direction(moved, 0, torch.ones(1, dtype=torch.float64))]).outcome is outcome


@pytest.mark.parametrize("size", [1000, 20000])
@pytest.mark.parametrize("factor", [1.01, 2.0, 0.0, -1.0])
def test_one_wrong_element_is_found(size, factor):
    x = torch.randn(size, dtype=torch.float64)
    gradient = x.cos()
    place = int(gradient.abs().argsort()[size // 2])
    gradient[place] *= factor
    evaluated, moved = probe_of(lambda x: x.sin().sum(), x, gradient)
    result = compare_tensors(evaluated, [moved])["x"]
    assert result.outcome is Outcome.DIFFERS
    assert result.element == (place,)
    assert result.numeric == pytest.approx(math.cos(float(x[place])), rel=1e-5)
    assert (result.n_wrong, result.n_tried) == (1, 7)


def test_tensors_compared_together_are_told_apart(monkeypatch):
    """With little time many tensors share a direction; one that is wrong is found in it all the same."""
    tensors = [torch.randn(40, dtype=torch.float64) for _ in range(100)]
    moved = [TensorGradient(str(n), x, x.cos() * (2 if n == 17 else 1)) for n, x in enumerate(tensors)]
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    for module in (scalar_function, search):
        monkeypatch.setattr(module, "time", clock)

    def slow():
        clock.now += 0.01
        return float(sum(x.sin().sum() for x in tensors))

    evaluated = ScalarFunction(slow, deadline=5.0)
    results = compare_tensors(evaluated, moved)
    assert {name for name, result in results.items() if result.outcome is Outcome.DIFFERS} == {"17"}
    assert all(result.outcome is Outcome.AGREES for name, result in results.items() if name != "17")
    assert evaluated.n_evaluations < 4 * len(moved)


def test_nothing_is_said_after_the_deadline():
    x = torch.randn(5, dtype=torch.float64)
    evaluated, moved = probe_of(lambda x: x.sin().sum(), x, x.cos(), deadline=time.monotonic() - 1)
    result = compare_tensors(evaluated, [moved])["x"]
    assert result is None


@pytest.mark.parametrize(
    "text", ["8,1,28,28", "8,32:int64:0..100", "4:float64", "3,2:float32:-1..1", "scalar", "5:bool"]
)
def test_specifications_are_read(text):
    spec = InputSpec.parse(text, "--input-shape")
    drawn = spec.draw(torch.float32, torch.Generator().manual_seed(0))
    assert drawn.shape == spec.shape
    assert drawn.dtype == (spec.dtype or torch.float32)
    if spec.high is not None:
        assert spec.low <= float(drawn.min()) <= float(drawn.max()) <= spec.high


def test_corners_of_many_weights_make_no_gradient_wrong():
    """Residual branches that start at zero put relu on its corner at every place, with weights of either sign."""
    x, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    # The slopes of the two sides are 1.5 and 1.2; autograd takes relu'(0) = 0 at either corner.
    evaluated, moved = probe_of(lambda x: (0.5 * x.relu() - 0.2 * (-x).relu() + x).sum() + 3, x, one)
    assert compare_along(evaluated, [Direction(moved, 0, one)]).outcome is Outcome.KINK
