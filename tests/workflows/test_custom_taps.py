"""Custom taps applied: the product against the plain convolution."""

from __future__ import annotations

import pytest
import torch
from cases import random

import deconv_cli
from deconv_cli import MalformedInputError, UsageError
from deconv_cli.parts import BOUNDARIES

KERNEL = random((3, 2, 3, 2))
IMAGE = random((2, 9, 8), seed=1)
SAME = [
    *((IMAGE, KERNEL, {"boundary": name}) for name in BOUNDARIES if name != "unknown"),
    (random((3, 2, 7, 8), seed=2), random((3, 2)), {"boundary": "circular"}),
    (random((3, 2, 7, 8), seed=2), random((2, 3, 2)), {"boundary": "circular"}),
    (random((2, 1, 9), seed=3), random((3,)), {"boundary": "reflect", "dimensions": 1}),
    (random((2, 1, 4, 5, 6), seed=3), random((2, 3, 2)), {"boundary": "reflect", "dimensions": 3}),
    (random((2, 1, 4, 5, 6), seed=3), random((2, 1, 2, 3, 2)), {"boundary": "reflect"}),
    (random((2, 1, 4, 5, 6), seed=3), random((3, 2)), {"boundary": "reflect", "dimensions": 3}),
    *(
        (IMAGE, random((9, 2, 2, 3), seed=3), {"padding": 2, **steps})
        for steps in ({"stride": 2}, {"dilation": (2, 1)})
    ),
    (IMAGE, random((9, 2, 2, 3), seed=3), {"padding": 2, "stride": (1, 2), "dilation": (2, 1)}),
    (IMAGE, KERNEL, {"padding": "full", "bias": random((3,))}),
]


@pytest.mark.parametrize(("x", "kernel", "options"), SAME, ids=[str(n) for n in range(len(SAME))])
def test_products_are_the_plain_convolution(x, kernel, options):
    y = deconv_cli.forward_taps(x, kernel, "product", **options)
    wanted = deconv_cli.forward(x, kernel, **options)
    assert float((y - wanted).abs().max()) < 1e-13


def logarithm(pixel, weight):
    return weight * torch.log(pixel)


def test_a_tap_that_is_not_defined_somewhere():
    with pytest.raises(MalformedInputError, match="NaN or infinite values at"):
        deconv_cli.forward_taps(IMAGE, KERNEL, logarithm)
    assert deconv_cli.forward_taps(IMAGE.abs() + 0.5, KERNEL, logarithm, boundary="circular").isfinite().all()


@pytest.mark.parametrize(("tap", "says"), [("cosine", "tap must be one of product, tan-sum"), (3, "or a function")])
def test_taps_that_cannot_be(tap, says):
    with pytest.raises(UsageError, match=says):
        deconv_cli.forward_taps(IMAGE, KERNEL, tap)


def test_forward_is_differentiable():
    x = (0.1 * IMAGE[:, :4, :4]).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: deconv_cli.forward_taps(x, KERNEL, "tan-sum"), (x,), fast_mode=True)


def test_a_kernel_for_each_channel_is_strided_too():
    kernel = random((2, 3, 3), seed=4)
    y = deconv_cli.forward_taps(IMAGE, kernel, "product", stride=2)
    one_by_one = [deconv_cli.forward(IMAGE[c : c + 1], kernel[c], stride=2) for c in range(2)]
    assert float((y - torch.cat(one_by_one)).abs().max()) < 1e-13
