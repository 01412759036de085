"""Convolutions with custom taps, and those that vary over the frame, against loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from cases import random

from deconv_cli import UsageError
from deconv_cli.operators.boundary_rules import as_rule
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.tap_convolution import check_elementwise, convolve_taps, evaluate
from deconv_cli.operators.varying_convolution import VaryingConvolution
from deconv_cli.parts import BOUNDARIES

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


ROWS, COLUMNS, SIZE = (0.2, 0.7), (0.1, 0.5, 0.95), (9, 11)


def hat(places, position, number):
    """One hat, by NumPy's interpolation."""
    return np.interp(position, places, np.eye(len(places))[number])


def dense(taps, boundary, padding):
    """Σ K_j diag(w_j) with a dense matrix for each kernel, and the weights pixel by pixel."""
    total = 0
    for i in range(len(ROWS)):
        for j in range(len(COLUMNS)):
            single = Convolution(taps[i, j], SIZE, padding=padding, boundary=boundary)
            _, height, width = single.input_shape
            top, left = single.geometry.pads.before if boundary == "unknown" else (0, 0)
            weights = [
                hat(ROWS, (r - top + 0.5) / SIZE[0], i) * hat(COLUMNS, (c - left + 0.5) / SIZE[1], j)
                for r in range(height)
                for c in range(width)
            ]
            total = total + single.as_matrix() * torch.tensor(weights, dtype=taps.dtype)
    return total


@pytest.mark.parametrize("boundary", [*BOUNDARIES])
@pytest.mark.parametrize(("padding", "size"), [("same", (4, 3)), ("valid", (3, 3)), ("full", (2, 5)), ((2, 1), (6, 6))])
def test_it_is_the_weighted_sum_of_its_kernels(boundary, padding, size):
    taps = random((2, 3, *size))
    operator = VaryingConvolution(taps, ROWS, COLUMNS, SIZE, padding=padding, boundary=boundary)
    expected = dense(taps, boundary, padding)
    torch.testing.assert_close(operator.as_matrix(), expected)
    torch.testing.assert_close(operator.H.as_matrix(), expected.T)
