"""Beads found, aligned and averaged: parts against what is known exactly."""

from __future__ import annotations

import math

import pytest
import torch
from bead_scenes import gaussian, scene
from cases import random

from deconv_cli.kernels.bead_average import average_beads, full_widths, take_off_size
from deconv_cli.kernels.bead_psf import find_maxima, holds_points, take_census
from deconv_cli.measured_light import connected, plateau_of, shift

FWHM = 2 * math.sqrt(2 * math.log(2))


@pytest.mark.parametrize("size", [(21, 25), (15, 17, 19)])
def test_a_shift_moves_a_bead_by_parts_of_a_pixel(size):
    middle = [n // 2 for n in size]
    by = torch.tensor([[0.3, -0.7, 0.25][: len(size)]], dtype=torch.float64)
    wanted = gaussian(size, [m + s for m, s in zip(middle, by[0].tolist(), strict=True)], (1.5,) * len(size))
    moved = shift(gaussian(size, middle, (1.5,) * len(size))[None], by)[0]
    assert float((moved - wanted).abs().max()) < 1e-4


@pytest.mark.parametrize("size", [(21, 25), (17, 15, 19)])
def test_beads_without_noise_are_averaged_to_the_point_itself(size):
    places = 0.45 * (2 * torch.rand(12, len(size), generator=torch.Generator().manual_seed(0)) - 1)
    heights = torch.linspace(1, 3, 12)
    middle = torch.tensor([n // 2 for n in size])
    sigma = (1.4, 1.8, 1.5)[: len(size)]
    windows = torch.stack(
        [h * gaussian(size, (middle + p).tolist(), sigma) for h, p in zip(heights, places, strict=True)]
    )
    average = average_beads(windows)
    wanted = gaussian(size, middle.tolist(), sigma)
    assert float((average.template / average.template.max() - wanted).abs().max()) < 2e-3
    assert bool(average.is_used.all())
    widths = full_widths(average.aligned)
    torch.testing.assert_close(widths.mean(0), FWHM * torch.tensor(sigma).double(), rtol=0.01, atol=0)
    assert float(widths.std(0).max()) < 0.01


def test_a_bead_unlike_the_others_is_left_out():
    windows = torch.stack(
        [gaussian((15, 15), (7.2, 6.9), (1.5, 1.5)) + 1e-3 * random((15, 15), seed=s) for s in range(9)]
    )
    windows[4] += gaussian((15, 15), (10, 4), (1.5, 1.5))
    average = average_beads(windows)
    assert average.is_used.tolist() == [i != 4 for i in range(9)]


def test_two_beads_that_touch_are_left_out_though_noise_hides_their_misfit():
    """The beads are longer than wide themselves, along a diagonal."""
    along = torch.arange(21) - 10.0
    u, v = (along[:, None] + along) / 2**0.5, (along[:, None] - along) / 2**0.5
    bead = 100 * torch.exp(-(u / 2.2).square() / 2 - (v / 1.5).square() / 2).double()
    windows = torch.stack([bead + 12 * random((21, 21), seed=s) for s in range(24)])
    windows[5] += shift(bead[None], torch.tensor([[0.5, 3.5]]).double())[0]
    windows[9] *= 2
    average = average_beads(windows)
    assert average.is_used.tolist() == [i != 5 for i in range(24)]


def test_pairs_in_a_stack_are_left_out_though_they_are_two_fifths_of_the_beads():
    size, middle = (17, 19, 19), torch.tensor([8.0, 9.0, 9.0])
    generator = torch.Generator().manual_seed(0)
    windows = []
    for i in range(15):
        angle, length = 2.4 * i, 1.5 if i < 6 else 0.0
        by = length * torch.tensor([0.0, math.sin(angle), math.cos(angle)])
        ends = [gaussian(size, (middle + sign * by).tolist(), (2.2, 1.7, 1.7)) for sign in (-1, 1)]
        light = 800 * ends[0] + (800 * ends[1] if length else 0)
        windows.append(torch.poisson(light + 20, generator=generator) - 20)
    average = average_beads(torch.stack(windows))
    assert average.is_used.tolist() == [i >= 6 for i in range(15)]


@pytest.mark.parametrize("n_beads", [2, 4])
def test_a_few_noisy_beads_are_kept(n_beads):
    """The median of a few beads says little; and of two beads, each may fail one test."""
    point = gaussian((21, 21), (10, 10), (1.6, 1.6))
    for field in range(12):
        windows = point + 0.15 * random((n_beads, 21, 21), seed=field)
        assert bool(average_beads(windows).is_used.all())


@pytest.mark.parametrize("n_axes", [2, 3])
def test_the_size_of_a_bead_is_taken_off(n_axes):
    """The bead is a ball of points, drawn at random; seen along the first axis, it is its projection."""
    size, radius, spacing, n_bins = (19,) * n_axes, 2.0, (0.5,) * n_axes, 35 - 10 * n_axes
    points = 2 * torch.rand(20000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1
    points = radius * points[points.norm(dim=1) <= 1]
    fine = torch.zeros(size, dtype=torch.float64)
    point = gaussian(size, (9,) * n_axes, (2.0,) * n_axes)
    counts = torch.histogramdd(points[:, -n_axes:], bins=[n_bins] * n_axes, range=[-2.0, 2.0] * n_axes).hist
    steps = (torch.arange(n_bins) - n_bins // 2) * (4 / n_bins)
    for place in counts.nonzero():
        by = torch.stack([steps[i] for i in place]).double()[None]
        fine += counts[tuple(place)] * shift(point[None], by)[0]
    found = take_off_size(fine / fine.sum(), 2 * radius * spacing[0], spacing)
    assert float((found / found.max() - point).abs().max()) < 0.03
    assert float((fine / fine.max() - point).abs().max()) > 0.05


def test_a_few_clipped_samples_are_seen_and_equal_tops_are_not():
    stars = scene((160, 160), (1.5, 1.5), 40, counts=3000)
    level = float(stars.flatten().topk(14).values[-1])
    assert plateau_of(stars.clamp_max(level)) == level
    assert plateau_of(stars.clamp_max(level).int()) == int(level)
    assert plateau_of(stars) is None
    between = gaussian((40, 40), (19.5, 20.5), (1.5, 1.5))  # four equal samples are its top
    assert int((between == between.max()).count_nonzero()) == 4
    assert plateau_of(between) is None
    signals = gaussian((1, 40), (0, 20), (1.5, 1.5)).expand(12, 40)  # of twelve channels, each with one largest sample
    assert plateau_of(signals, 1) is None


def test_beads_that_are_unfit_are_counted():
    image = torch.zeros(120, 130).double() + 10 + 0.3 * random((120, 130))
    for place, height in (((30, 30), 100), ((60, 90), 80), ((60, 97), 90), ((90, 40), 400), ((2, 100), 90)):
        image += height * gaussian((120, 130), place, (1.5, 1.5))
    image += 8 * gaussian((120, 130), (90, 46), (1.2, 1.2))  # a ring of the brightest
    census = take_census(image.clamp_max(300), (13, 13), 300.0)
    assert census.used.tolist() == [[30, 30]]
    assert (census.n_crowded, census.n_saturated, census.n_at_edge) == (2, 1, 1)
    assert not bool(census.is_background[30, 30])
    assert bool(census.is_background[30, 60])
    places, _ = find_maxima(image)
    assert places[0].tolist() == [90, 40]


@pytest.mark.parametrize("n_axes", [2, 3])
def test_light_that_is_not_connected_to_the_middle_is_set_to_zero(n_axes):
    light = torch.zeros((9,) * n_axes)
    for at in (3, 4, 5, 7):
        light[(at,) * n_axes] = 1
    assert connected(light).nonzero()[:, 0].tolist() == [3, 4, 5]


@pytest.mark.parametrize("unevenness", [0.0, 20.0])
def test_bright_spots_on_uneven_ground_are_not_isolated_points(unevenness):
    ground = unevenness * torch.linspace(0, 12, 256).sin() * torch.linspace(0, 9, 256).cos()[:, None]
    light = 100 + ground + 0.5 * random((256, 256))
    light[16::32, 16::32] += torch.linspace(300, 2000, 64).reshape(8, 8)
    assert holds_points(light) == (unevenness == 0)


@pytest.mark.parametrize("width", [1.5, 12])
def test_one_star_may_outshine_all_others_but_no_wide_spot_does(width):
    light = 100 + 0.5 * random((256, 256))
    light[16::32, 16::32] += torch.linspace(300, 2000, 64).reshape(8, 8)
    distance = (torch.arange(256.0) - 130).square()
    light += 2e5 * (-(distance + distance[:, None]) / (2 * width**2)).exp()
    assert holds_points(light) == (width == 1.5)
