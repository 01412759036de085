"""Kernels of formulas: their transforms, what is common to them, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

import deconv_cli
from deconv_cli.errors import UsageError
from deconv_cli.kernels.sources.formula import MAX_REACH, make_kernel, read_formula, transform_error

FREQUENCIES = torch.linspace(-0.25, 0.25, 33, dtype=torch.float64)
"""Up to half of Nyquist's, in cycles a pixel."""
Y, X = torch.meshgrid(FREQUENCIES, FREQUENCIES, indexing="ij")
SHIFTS = [(0.0, 0.0), (0.3, -0.2), (0.5, 0.5), (-0.5, 7.45)]


def gaussian(sigma):
    return torch.exp(-2 * (math.pi * sigma * torch.hypot(Y, X)).square())


def disk(radius):
    v = (2 * math.pi * radius * torch.hypot(Y, X)).clamp_min(1e-9)
    return 2 * torch.special.bessel_j1(v) / v


def motion(length, angle):
    return torch.sinc(length * (X * math.cos(math.radians(angle)) - Y * math.sin(math.radians(angle))))


def polygon(blades, radius, angle):
    """Sum over the points of a fine grid that lie within."""
    at = ((torch.arange(1500, dtype=torch.float64) + 0.5) / 750 - 1) * radius
    inside = torch.ones(1500, 1500, dtype=torch.bool)
    for i in range(blades):
        normal = math.radians(angle) + math.pi / blades * (2 * i + 1)
        inside &= at * math.cos(normal) - at[:, None] * math.sin(normal) <= radius * math.cos(math.pi / blades)
    waves = torch.exp(-2j * math.pi * FREQUENCIES[:, None] * at)
    return waves @ inside.to(waves.dtype) @ waves.T / inside.sum()


def moffat(fwhm, beta):
    """Integrate over circles, far out."""
    alpha = fwhm / (2 * math.sqrt(2 ** (1 / beta) - 1))
    r = torch.arange(0, 400 * alpha, 0.02, dtype=torch.float64)
    light = r * (1 + (r / alpha) ** 2) ** -beta
    f = torch.linspace(0, 0.36, 200, dtype=torch.float64)
    values = torch.stack([(light * torch.special.bessel_j0(2 * math.pi * one * r)).sum() for one in f]) / light.sum()
    at = torch.hypot(Y, X) / f[1]
    return torch.lerp(values[at.long()], values[at.long() + 1], at - at.floor())


TRANSFORMS = {
    "gaussian:0.3": lambda: gaussian(0.3),
    "gaussian:1.8": lambda: gaussian(1.8),
    "disk:0.4": lambda: disk(0.4),
    "disk:1.3": lambda: disk(1.3),
    "disk:5.2": lambda: disk(5.2),
    "box:3": lambda: torch.sinc(3 * Y) * torch.sinc(3 * X),
    "motion:9@30": lambda: motion(9, 30),
    "motion:17@110": lambda: motion(17, 110),
    "motion:9@0": lambda: motion(9, 0),
    "disk:2*motion:5@70": lambda: disk(2) * motion(5, 70),
    "disk-motion:2@5@70": lambda: disk(2) * motion(5, 70),
    "polygon:5@4@10": lambda: polygon(5, 4, 10),
    "polygon:6@1.3@0": lambda: polygon(6, 1.3, 0),
    "moffat:3@3": lambda: moffat(3, 3),
    "moffat:1.5@4.5": lambda: moffat(1.5, 4.5),
}


def transform_of(taps, down=0.0, right=0.0):
    """Transform what a point becomes, moved back by the shift."""
    psf = taps.flip((0, 1))
    rows, columns = (torch.arange(n) - n // 2 - moved for n, moved in zip(psf.shape, (down, right), strict=True))
    waves = [torch.exp(-2j * math.pi * FREQUENCIES[:, None] * places) for places in (rows, columns)]
    return waves[0] @ psf.to(waves[0].dtype) @ waves[1].T


@pytest.mark.parametrize("text", TRANSFORMS)
def test_a_kernel_has_the_transform_of_its_formula_at_any_center(text):
    wanted = TRANSFORMS[text]()
    for down, right in SHIFTS:
        taps = make_kernel(f"{text}*shift:{down}@{right}")
        assert float((transform_of(taps, down, right) - wanted).abs().max()) < 1e-3
        assert float(taps.sum()) == pytest.approx(1, abs=1e-12)
        assert taps.dtype == torch.float64
        assert all(size % 2 for size in taps.shape)
    assert torch.equal(make_kernel(text), make_kernel(f"{text}*shift:0@0"))


def airy(radius):
    share = (torch.hypot(Y, X) * math.pi * radius / 3.8317059702).clamp(max=1)
    return 2 / math.pi * (share.acos() - share * (1 - share.square()).sqrt())


def test_more_samples_hold_more_of_the_tails():
    kernel, errors = read_formula("airy:1"), []
    for size in (41, 81, 201):
        taps = make_kernel("airy:1", size=size)
        errors.append(transform_error(kernel, taps.flip((0, 1))))
        assert taps.shape == (size, size)
        assert float(taps.sum()) == pytest.approx(1, abs=1e-12)
    assert errors[1] == pytest.approx(errors[0] * 41 / 81, rel=0.05)
    assert errors[2] < 1e-3
    assert float((transform_of(taps) - airy(1)).abs().max()) < 1e-3


def test_the_error_of_a_transform_is_seen():
    taps = make_kernel("disk:2*shift:0.1@0").flip((0, 1))
    assert transform_error(read_formula("disk:2*shift:0.1@0"), taps) < 1e-3
    wanted = float((transform_of(taps.flip((0, 1))) - disk(2)).abs().max())
    assert transform_error(read_formula("disk:2"), taps) == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("size", [10, 3, (41,), (41, 42), 9999])
def test_sizes_that_cannot_be_are_refused(size):
    with pytest.raises(UsageError, match=r"should be odd along each axis, at least 21×21 and at most 2069, but is"):
        make_kernel("gaussian:2", size=size)


def test_a_gaussian_of_three_axes_has_the_transform_of_one_along_each():
    taps = make_kernel("gaussian3d:1.2@0.9*shift:0.25@0@-0.4").flip((0, 1, 2)).to(torch.complex128)
    for axis, moved in enumerate((0.25, 0, -0.4)):
        places = torch.arange(taps.shape[axis]) - taps.shape[axis] // 2 - moved
        waves = torch.exp(-2j * math.pi * FREQUENCIES[:, None] * places)
        along = waves @ taps.sum([other for other in range(3) if other != axis])
        wanted = torch.exp(-2 * (math.pi * (0.9 if axis else 1.2) * FREQUENCIES).square())
        assert float((along - wanted).abs().max()) < 1e-3


@pytest.mark.parametrize("text", ["gaussian:1.2", "disk:3", "motion:7@0", "gaussian3d:3@1.2"])
def test_a_signal_is_blurred_as_lines_across_it_are(text):
    taps, wide = make_kernel(text, dimensions=1), make_kernel(text)
    assert taps.ndim == 1
    line = wide.sum(tuple(range(wide.ndim - 1)))
    reach = min(len(line), len(taps)) // 2
    middle, other = len(line) // 2, len(taps) // 2
    near = line[middle - reach : middle + reach + 1] - taps[other - reach : other + reach + 1]
    assert float(near.abs().max()) < 1e-3
    assert float(taps.sum()) == pytest.approx(1, abs=1e-12)


def test_the_picture_moves_down_and_to_the_right():
    point = torch.zeros(1, 21, 21, dtype=torch.float64)
    point[0, 8, 8] = 1
    for text in ("gaussian:1*shift:2@1", "shift:2@1"):
        moved = deconv_cli.forward(point, make_kernel(text), boundary="zero")
        assert int(moved.argmax()) == 10 * 21 + 9
    assert torch.allclose(moved, point.roll((2, 1), (1, 2)), atol=1e-12)


TEXTS = ["gaussian:1.2", "disk:0.4", "disk:20", "box:6.3", "motion:7@0", "motion:9.5@-62"]


@pytest.mark.parametrize("text", TEXTS)
def test_what_every_source_gives(text):
    taps = make_kernel(text)
    assert taps.dtype == torch.float64
    assert taps.ndim == 2
    assert all(size % 2 == 1 for size in taps.shape)
    assert abs(float(taps.sum()) - 1) < 1e-12
    assert float((taps - taps.flip((0, 1))).abs().max()) < 1e-12  # centered
    assert float(taps[0].abs().max()) > 1e-9  # no empty frame
    assert float(taps[:, 0].abs().max()) > 1e-9


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "kernel source must be one of gaussian, disk, box, motion"),
        ("lens:3", "but is 'lens'"),
        ("disk", "must be written disk:RADIUS, for example disk:5.2, but is 'disk'."),
        (
            "disk:4*",
            "such as 'disk:4*motion:9@30', but one factor is missing in 'disk:4*'.",
        ),
        ("disk:4**motion:9@30", "one factor is missing"),
        ("* disk:4", "one factor is missing"),
        ("shift", "must be written shift:DOWN@RIGHT, for example shift:0.3@-0.2"),
        ("disk:1@2", "written disk:RADIUS"),
        ("disk:wide", "but is 'disk:wide'"),
        ("disk:nan", "for example"),
        ("motion:3", "written motion:LENGTH@ANGLE"),
        ("motion:3@1e999", "for example"),
        ("motion:3@" + "9" * 5000, "for example"),
        ("disk:0", "RADIUS of the kernel must be positive"),
        ("gaussian:-1", "SIGMA of the kernel must be positive"),
        ("box:-0.5", "SIZE of the kernel must be positive"),
        ("motion:0@30", "LENGTH of the kernel must be positive"),
        ("disk:1e9", f"at most {MAX_REACH} pixels"),
        ("gaussian:300", f"at most {MAX_REACH} pixels"),
        ("motion:5000@45", f"at most {MAX_REACH} pixels"),
        ("disk:2*shift:0.1", "is written shift:DOWN@RIGHT"),
        ("disk:2*shift:0.1@0@0", "same number of axes, but have 2 and 3"),
        ("disk:2*shift:a@b", "is written shift:DOWN@RIGHT"),
        ("disk:2*shift:0@99", "at most 64"),
        ("disk:1000*shift:0@60", "may extend at most"),
        ("disk:2*gausian:1.5", "but is 'gausian'; perhaps you mean gaussian."),
    ],
)
def test_what_is_none_is_refused_in_one_short_sentence(text, says):
    with pytest.raises(UsageError) as caught:
        make_kernel(text)
    assert says in str(caught.value)
    assert str(caught.value).endswith(".")
    assert len(str(caught.value)) < 200
