"""Convolutions with custom taps, against loops over pixels and autograd."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import random
from properties import adjoint_defect, linearity_defect

from deconv_cli import UsageError
from deconv_cli.operators.tap_convolution import TapConvolution, check_elementwise, spread_out
from deconv_cli.parts import BOUNDARIES

CASES = [
    {},
    {"boundary": "circular", "padding": "full"},
    {"boundary": "reflect"},
    {"boundary": "symmetric", "padding": (1, 2)},
    {"boundary": "replicate", "padding": 1},
    {"boundary": "unknown"},
    {"padding": "valid", "stride": (2, 3)},
    {"dilation": (2, 1), "padding": 2},
    {"reduction": "product", "stride": (1, 2), "dilation": (1, 2), "padding": 2},
]


def bend(pixel, weight):
    return torch.sin(pixel + weight) + pixel * weight**2


def by_loops(convolution, wide):
    """The definition, one number at a time, on an image that has its border already."""
    y = torch.empty(convolution.output_shape, dtype=wide.dtype)
    kernel = convolution.kernel
    for o, *m in itertools.product(*map(range, y.shape)):
        taps = []
        for i, *d in itertools.product(range(kernel.shape[1]), *map(range, kernel.shape[2:])):
            geometry = zip(m, convolution.stride, d, convolution.dilation, strict=True)
            at = tuple(a * stride + b * dilation for a, stride, b, dilation in geometry)
            taps.append(bend(wide[(i, *at)], kernel[(o, i, *d)]))
        taps = torch.stack(taps)
        y[(o, *m)] = taps.sum() if convolution.reduction == "sum" else taps.prod()
    return y


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_forward_is_what_loops_over_pixels_give(settings):
    convolution = TapConvolution(bend, random((2, 3, 3, 2)), (6, 7), **settings)
    x = random(convolution.input_shape, seed=1)
    wanted = by_loops(convolution, convolution.extension.forward(x))
    assert float((convolution.forward(x) - wanted).abs().max()) < 1e-12


@pytest.mark.parametrize("n_axes", [1, 3])
def test_forward_in_other_dimensions(n_axes):
    convolution = TapConvolution(bend, random((2, 1, *(2, 3, 2)[:n_axes])), (5, 4, 6)[:n_axes], boundary="reflect")
    x = random(convolution.input_shape, seed=1)
    wanted = by_loops(convolution, convolution.extension.forward(x))
    assert float((convolution.forward(x) - wanted).abs().max()) < 1e-12


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_the_linearization_is_the_derivative(settings):
    convolution = TapConvolution(bend, random((2, 3, 3, 2)), (6, 5), **settings)
    x = random(convolution.input_shape, seed=1)
    jacobian = convolution.linearize(x)
    wanted = torch.autograd.functional.jacobian(convolution.forward, x).reshape(jacobian.as_matrix().shape)
    assert float((jacobian.as_matrix() - wanted).abs().max()) < 1e-12
    assert adjoint_defect(jacobian) < 1e-14
    assert linearity_defect(jacobian) < 1e-13


def test_the_linearization_at_a_constant_image_is_a_convolution():
    convolution = TapConvolution(bend, random((2, 3, 3, 2)), (6, 5), padding="valid", dilation=(1, 2))
    mean, spread = convolution.linearize(torch.full(convolution.input_shape, 0.4, dtype=torch.float64)).mean_slopes()
    assert spread < 1e-7
    torch.testing.assert_close(spread_out(mean, (1, 2)), convolution.slopes_at(0.4), rtol=1e-13, atol=1e-13)
    _, spread = convolution.linearize(random(convolution.input_shape)).mean_slopes()
    assert 0.1 < spread < 1


def test_every_boundary_is_tried():
    assert {settings.get("boundary", "zero") for settings in CASES} == set(BOUNDARIES)


def test_another_reduction_is_refused():
    with pytest.raises(UsageError, match="reduction must be sum or product"):
        TapConvolution(bend, random((1, 1, 2, 2)), (5, 5), reduction="mean")


BAD = {
    "fails": (lambda pixel, weight: pixel.numpy() * pixel.nonsense, "fails"),
    "no tensor": (lambda pixel, weight: 1.0, "should give a tensor"),
    "whole numbers": (lambda pixel, weight: pixel.long(), "should give a tensor"),
    "another shape": (lambda pixel, weight: pixel.sum(-1), "should give the shape"),
    "no gradient": (lambda pixel, weight: pixel.detach() * weight, "has no gradient"),
}


@pytest.mark.parametrize("name", BAD)
def test_taps_that_fail_are_refused_in_a_sentence(name):
    tap, says = BAD[name]
    convolution = TapConvolution(tap, random((2, 1, 2, 2)), (5, 6))
    with pytest.raises(UsageError, match=says) as refused:
        convolution.linearize(random((1, 5, 6)))
    assert str(refused.value).count(". ") == 0
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize(
    "tap", [lambda pixel, weight: (pixel - pixel.mean()) * weight, lambda pixel, weight: pixel + torch.rand_like(pixel)]
)
def test_taps_of_more_than_one_pixel_are_refused(tap):
    check_elementwise(bend, random((2, 5, 6)), random((3, 2)))
    with pytest.raises(UsageError, match="depends on the others, or on chance"):
        check_elementwise(tap, random((2, 5, 6)), random((3, 2)))
