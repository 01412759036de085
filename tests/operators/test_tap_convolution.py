"""Convolutions with custom taps, against loops over pixels."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from cases import random

from deconv_cli import Convolution, UsageError
from deconv_cli.operators.boundary_rules import as_rule
from deconv_cli.operators.tap_convolution import check_elementwise, convolve_taps, evaluate

PLAIN = {"boundary": "zero", "padding": "same", "stride": (1, 1), "dilation": (1, 1)}
CASES = [
    {},
    {"boundary": "circular", "padding": "full"},
    {"boundary": "reflect"},
    {"boundary": "symmetric", "padding": (1, 2)},
    {"boundary": "replicate", "padding": 1},
    {"padding": "valid", "stride": (2, 3)},
    {"dilation": (2, 1), "padding": 2},
]


def bend(pixel, weight):
    return torch.sin(pixel + weight) + pixel * weight**2


def by_loops(kernel, x, boundary, padding, stride, dilation):
    """The definition, one number at a time."""
    extent = [(k - 1) * step + 1 for k, step in zip(kernel.shape[2:], dilation, strict=True)]
    plain = Convolution(x.new_zeros(*kernel.shape[:2], *extent), x.shape[1:], padding=padding, boundary=boundary)
    sizes = [math.ceil(n / step) for n, step in zip(plain.geometry.output_size, stride, strict=True)]
    wide, y = plain.extension.forward(x), x.new_zeros(kernel.shape[0], *sizes)
    for o, *m in itertools.product(*map(range, y.shape)):
        for i, *d in itertools.product(range(kernel.shape[1]), *map(range, kernel.shape[2:])):
            at = tuple(a * s + b * t for a, s, b, t in zip(m, stride, d, dilation, strict=True))
            y[(o, *m)] += bend(wide[(i, *at)], kernel[(o, i, *d)])
    return y


def check_against_loops(kernel, x, settings):
    wanted = by_loops(kernel, x, **settings)
    found = convolve_taps(bend, kernel, x, **settings | {"boundary": as_rule(settings["boundary"])})
    assert float((found - wanted).abs().max()) < 1e-12


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_taps_are_what_loops_over_pixels_give(settings):
    check_against_loops(random((2, 3, 3, 2)), random((3, 6, 7), seed=1), PLAIN | settings)


@pytest.mark.parametrize("n_axes", [1, 3])
def test_taps_in_other_dimensions(n_axes):
    ones = (1,) * n_axes
    settings = {"boundary": "reflect", "padding": "same", "stride": ones, "dilation": ones}
    kernel, x = random((2, 1, *(2, 3, 2)[:n_axes])), random((1, *(5, 4, 6)[:n_axes]), seed=1)
    check_against_loops(kernel, x, settings)


BAD = {
    "fails": (lambda pixel, weight: pixel.numpy() * pixel.nonsense, "fails"),
    "no tensor": (lambda pixel, weight: 1.0, "must return a tensor"),
    "whole numbers": (lambda pixel, weight: pixel.long(), "must return a tensor"),
    "another shape": (lambda pixel, weight: pixel.sum(-1), "must return the shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_taps_that_fail_are_refused_in_a_sentence(name):
    tap, says = BAD[name]
    with pytest.raises(UsageError, match=says) as refused:
        evaluate(tap, random((1, 5, 6)), random((2, 1)))
    assert str(refused.value).count(". ") == 0
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize(
    "tap", [lambda pixel, weight: (pixel - pixel.mean()) * weight, lambda pixel, weight: pixel + torch.rand_like(pixel)]
)
def test_taps_of_more_than_one_pixel_are_refused(tap):
    check_elementwise(bend, random((2, 5, 6)), random((3, 2)))
    with pytest.raises(UsageError, match="depend on other pixels, or on chance"):
        check_elementwise(tap, random((2, 5, 6)), random((3, 2)))
