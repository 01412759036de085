"""Shifted kernels, against the continuous transforms of their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from deconv_cli.errors import UsageError
from deconv_cli.kernels.sources.formula import make_kernel

FREQUENCIES = torch.linspace(-0.25, 0.25, 17, dtype=torch.float64)
"""Up to half of Nyquist's, in cycles a pixel."""
Y, X = torch.meshgrid(FREQUENCIES, FREQUENCIES, indexing="ij")


def gaussian(sigma):
    return torch.exp(-2 * (math.pi * sigma * torch.hypot(Y, X)).square())


def disk(radius):
    v = (2 * math.pi * radius * torch.hypot(Y, X)).clamp_min(1e-9)
    return 2 * torch.special.bessel_j1(v) / v


def motion(length, angle):
    return torch.sinc(length * (X * math.cos(math.radians(angle)) - Y * math.sin(math.radians(angle))))


TRANSFORMS = {
    "gaussian:0.5": gaussian(0.5),
    "gaussian:1.8": gaussian(1.8),
    "disk:1.3": disk(1.3),
    "disk:5.2": disk(5.2),
    "box:3.4": torch.sinc(3.4 * Y) * torch.sinc(3.4 * X),
    "motion:9@30": motion(9, 30),
    "motion:17@110": motion(17, 110),
    "disk:2*motion:5@70": disk(2) * motion(5, 70),
}


def transform_of(taps, down, right):
    """Transform what a point becomes, moved back by the shift."""
    psf = taps.flip((0, 1)).to(torch.complex128)
    waves = [
        torch.exp(-2j * math.pi * FREQUENCIES[:, None] * (torch.arange(n) - n // 2 - moved))
        for n, moved in zip(psf.shape, (down, right), strict=True)
    ]
    return waves[0] @ psf @ waves[1].T


@pytest.mark.parametrize(("down", "right"), [(0.0, 0.0), (0.3, -0.2), (-0.5, 7.45)])
@pytest.mark.parametrize("text", TRANSFORMS)
def test_a_shifted_kernel_has_the_transform_of_its_formula(text, down, right):
    taps = make_kernel(f"{text}*shift:{down}@{right}")
    assert float((transform_of(taps, down, right) - TRANSFORMS[text]).abs().max()) < 1e-3
    assert float(taps.sum()) == pytest.approx(1, abs=1e-12)


def test_integrals_over_pixels_have_not():
    taps = make_kernel("disk:1.3")
    pixel = torch.sinc(Y) * torch.sinc(X)
    assert float((transform_of(taps, 0, 0) - TRANSFORMS["disk:1.3"] * pixel).abs().max()) > 0.02


def test_the_picture_moves_down_and_to_the_right():
    import deconv_cli

    point = torch.zeros(1, 21, 21, dtype=torch.float64)
    point[0, 8, 8] = 1
    moved = deconv_cli.forward(point, make_kernel("gaussian:1*shift:2@1"), boundary="zero")
    assert int(moved.argmax()) == 10 * 21 + 9


def test_a_shift_of_a_stack():
    taps = make_kernel("gaussian3d:1.2@0.9*shift:0.25@0@-0.4")
    weights = taps.flip((0, 1, 2))
    for axis, moved in enumerate((0.25, 0, -0.4)):
        n = taps.shape[axis]
        along = weights.sum([other for other in range(3) if other != axis])
        assert float((along * (torch.arange(n) - n // 2)).sum()) == pytest.approx(moved, abs=1e-3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("shift:0.1@0.2", "moves nothing"),
        ("disk:2*shift:0.1", "takes 2 numbers"),
        ("disk:2*shift:a@b", "is written shift:DOWN@RIGHT"),
        ("disk:2*shift:0@99", "at most 64"),
        ("disk:900*shift:0@0", "too large to be shifted"),
    ],
)
def test_what_is_no_shift_is_refused(text, says):
    with pytest.raises(UsageError, match=says):
        make_kernel(text)
