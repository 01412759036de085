"""A known point-spread function is recovered from beads with Poisson noise and a background."""

from __future__ import annotations

import pytest
import torch
from bead_scenes import point, scene
from cases import random

import deconv_cli
from deconv_cli import ShapeError, UntrustworthyResultError, UsageError
from deconv_cli.kernels.bead_average import full_widths

SCENES = {"2-D": ((200, 220), (1.6, 2.1), 36), "3-D": ((40, 100, 100), (2.4, 1.5, 1.5), 32)}


@pytest.mark.parametrize("name", SCENES)
def test_the_psf_comes_back_within_three_percent(name):
    shape, sigma, pitch = SCENES[name]
    found = deconv_cli.psf_from_beads(scene(shape, sigma, pitch, counts=1500))
    size = tuple(found.psf.shape)
    truth = point(size, [n // 2 for n in size], sigma)
    truth = truth / truth.sum()
    assert float((found.psf - truth).abs().max() / truth.max()) < 0.03
    assert float((found.psf - truth).norm() / truth.norm()) < 0.03
    assert found.n_used >= 9
    assert found.background == pytest.approx(20, abs=0.5)
    for width, scatter, wanted in zip(found.widths, found.scatter, full_widths(truth[None])[0].tolist(), strict=True):
        assert width == pytest.approx(wanted, rel=0.03)
        assert 0 < scatter < 0.1 * width
    assert torch.equal(found.kernel.flip(tuple(range(len(size)))), found.psf)


def test_tails_of_a_wide_field_are_kept_and_no_background():
    """Beads whose light fills the stack: a cone, of which every plane carries as much."""
    depth, rows = torch.arange(31.0, dtype=torch.float64) - 15, torch.arange(95.0, dtype=torch.float64) - 47
    width = (1.3**2 + (1.2 * depth[:, None, None]) ** 2).sqrt()
    cone = (-(rows[:, None] ** 2 + rows**2) / (2 * width**2)).exp() / width**2
    light = torch.full((25, 80, 80), 100.0, dtype=torch.float64)
    for z, y, x in ((11, 20, 22), (12, 24, 58), (13, 60, 19), (12, 57, 61)):
        part = cone[max(15 - z, 0) : 40 - z, max(47 - y, 0) : 127 - y, max(47 - x, 0) : 127 - x]
        start = (max(z - 15, 0), max(y - 47, 0), max(x - 47, 0))
        light[tuple(slice(s, s + n) for s, n in zip(start, part.shape, strict=True))] += 3000 * part
    found = deconv_cli.psf_from_beads(torch.poisson(light, generator=torch.Generator().manual_seed(1)))
    assert found.psf.shape[0] == 25
    assert min(found.psf.shape[1:]) > 30
    assert found.background == pytest.approx(100, abs=4)
    assert found.outermost > 0.3


def test_a_given_size_and_an_asymmetric_psf():
    """A comet: its tail points down in the picture, so that the kernel of the correlation is turned."""
    generator = torch.Generator().manual_seed(0)
    light = torch.full((160, 160), 5.0, dtype=torch.float64)

    def comet(center):
        return point((160, 160), center, (1.5, 1.5)) + 0.4 * point((160, 160), (center[0] + 3, center[1]), (1.5, 1.5))

    for i in range(4):
        for j in range(4):
            light += 900 * comet((20 + 40 * i + 0.3 * j, 20 + 40 * j + 0.2 * i))
    found = deconv_cli.psf_from_beads(torch.poisson(light, generator=generator), size=(21, 19))
    assert found.psf.shape == (21, 19)
    assert float(found.psf[14:].sum()) > 1.6 * float(found.psf[:7].sum())
    assert float(found.kernel[:7].sum()) > 1.6 * float(found.kernel[14:].sum())


def test_full_samples_are_told_by_the_dtype():
    image = scene((120, 120), (1.6, 1.6), 40, counts=300)
    narrow = image.clamp_max(255).to(torch.uint8)
    found = deconv_cli.psf_from_beads(narrow, size=(15, 15))
    n_full = sum(
        bool((narrow[i * 40 : i * 40 + 40, j * 40 : j * 40 + 40] == 255).any()) for i in range(3) for j in range(3)
    )
    assert found.census.n_saturated == n_full > 0
    assert found.n_used == 9 - n_full


def test_one_saturated_star_does_not_hide_the_others():
    places = torch.randint(12, 148, (24, 2), generator=torch.Generator().manual_seed(5))
    x = torch.full((1, 160, 160), 50.0)
    x[0, places[:, 0], places[:, 1]] += torch.linspace(5000, 30000, 24)
    x[0, 80, 80] = 3e6
    y = deconv_cli.forward(x, deconv_cli.make_kernel("moffat:4@2.8"), boundary="reflect")[0]
    y = (y + 5 * torch.randn(y.shape, generator=torch.Generator().manual_seed(6))).round().clamp(0, 65535)
    found = deconv_cli.psf_from_beads(y.to(torch.uint16))
    assert found.census.n_saturated == 1
    assert found.widths == pytest.approx((4, 4), rel=0.1)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"image": random((9,))}, ShapeError, "have the shape"),
        ({"image": torch.zeros(60, 60)}, UntrustworthyResultError, "none stands out of the background"),
        ({"image": random((4, 30))}, ShapeError, "9 samples or more"),
        ({"size": (4, 5)}, UsageError, "an odd number of samples"),
        ({"bead_diameter": -1.0}, UsageError, "bead_diameter must be zero or a positive number"),
        ({"spacing": (1.0,)}, UsageError, "spacing must hold a positive number"),
    ],
)
def test_refusals(change, error, says):
    given = {"image": scene((80, 80), (1.5, 1.5), 40, counts=500)} | change
    with pytest.raises(error, match=says):
        deconv_cli.psf_from_beads(given.pop("image"), **given)


def test_beads_larger_than_what_is_seen_are_refused():
    shape, sigma, pitch = SCENES["2-D"]
    with pytest.raises(UsageError, match="look wider than these beads"):
        deconv_cli.psf_from_beads(scene(shape, sigma, pitch, counts=1500), bead_diameter=20)
