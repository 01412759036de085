"""Microscopes: compared with a second implementation of the vectorial integrals, and with known facts of each kind."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from deconv_cli import Microscope, UsageError, microscope_psf
from deconv_cli.kernels.microscope import focus_planes, sampling_notes

WATER = Microscope(numerical_aperture=1.1, emission=520, spacing=(0.25, 0.1, 0.1), immersion_index=1.333)


def by_integrals(optics, n_pixels, pixel, heights, shift=0.0):
    """Richards and Wolf by the rule of trapezoids: |I0|² + 2|I1|² + |I2|², on a row through the axis.

    `shift` is where the light of a deep point is focused, beyond its depth.
    """
    angles = torch.linspace(0, optics.half_angle, 4001, dtype=torch.float64)
    k, n = 2 * math.pi / 0.52, optics.immersion_index
    m = optics.sample_index or n
    radius = (torch.arange(n_pixels, dtype=torch.float64) - n_pixels // 2).abs() * pixel
    phase = optics.depth * (m**2 - (n * angles.sin()) ** 2).sqrt() - (shift + heights[:, None]) * n * angles.cos()
    wave = torch.exp(1j * k * phase) * angles.cos().sqrt() * angles.sin()
    argument = k * n * radius[:, None] * angles.sin()
    j0, j1 = torch.special.bessel_j0(argument), torch.special.bessel_j1(argument)
    j2 = torch.where(argument > 1e-6, 2 * j1 / argument.clamp_min(1e-300), 1.0) - j0
    factors = (j0 * (1 + angles.cos()), math.sqrt(2) * j1 * angles.sin(), j2 * (1 - angles.cos()))
    fields = [torch.trapezoid(wave[:, None] * factor, angles) for factor in factors]
    return sum(field.abs().square() for field in fields)


@pytest.mark.parametrize(("aperture", "index"), [(1.4, 1.515), (1.1, 1.333), (0.5, 1.0)])
def test_the_focus_is_that_of_the_vectorial_integrals(aperture, index):
    optics = replace(WATER, numerical_aperture=aperture, immersion_index=index)
    found = torch.stack([*focus_planes(optics, 520.0, 31, 0.08, 9, 0.2)])
    wanted = by_integrals(optics, 31, 0.08, (torch.arange(9) - 4) * 0.2)
    assert float((found[:, 15] - wanted / wanted.max()).abs().max()) < 1e-3
    assert float((found - found.mT).abs().max()) < 1e-4
    assert float((found - found.flip(0)).abs().max()) < 1e-4


def test_a_deep_sample_is_focused_where_it_is_brightest_and_its_planes_differ():
    optics = replace(WATER, numerical_aperture=1.2, immersion_index=1.515, sample_index=1.333, depth=4.0)
    found = torch.stack([*focus_planes(optics, 520.0, 21, 0.08, 41, 0.1)])
    heights = torch.arange(-3, 3, 0.01, dtype=torch.float64)
    nominal = 4.0 * 1.515 / 1.333
    shift = nominal + float(heights[by_integrals(optics, 1, 0.08, heights, nominal)[:, 0].argmax()])
    wanted = by_integrals(optics, 21, 0.08, (torch.arange(41) - 20) * 0.1, shift)
    assert float((found[:, 10] - wanted / wanted.max()).abs().max()) < 0.02
    assert int(found[:, 10, 10].argmax()) == 20
    assert float((found - found.flip(0)).abs().max()) > 0.05


def test_every_kind_is_narrower_along_the_axis_than_a_wide_field():
    wide = microscope_psf(WATER, (31, 21, 21))
    assert float(wide.sum()) == pytest.approx(1.0)
    kinds = {
        "confocal": replace(WATER, mode="confocal", excitation=488.0),
        "two-photon": replace(WATER, mode="two-photon", excitation=900.0),
        "light-sheet": replace(WATER, mode="light-sheet", sheet=2.0),
    }
    for kind, microscope in kinds.items():
        psf = microscope_psf(microscope, (31, 21, 21))
        assert float(psf.min()) >= 0
        # Of a wide field every plane holds as much light; of the others the outer planes hold little.
        assert float(psf[:5].sum()) < 0.5 * float(wide[:5].sum()), kind
    pinholes = [replace(kinds["confocal"], pinhole=size) for size in (0.0, 1.0, 5.0)]
    shares = [float(microscope_psf(each, (31, 21, 21))[15, 10, 10]) for each in pinholes]
    assert shares[0] > shares[1] > shares[2]


def test_a_camera_integrates_over_its_pixels():
    """A coarse pixel holds what nine fine ones hold."""
    flat = replace(WATER, spacing=(0.05, 0.05))
    fine = microscope_psf(flat, (63, 63))
    coarse = microscope_psf(replace(flat, spacing=(0.15, 0.15)), (21, 21))
    added = fine.unflatten(0, (21, 3)).unflatten(-1, (21, 3)).sum((1, 3))
    assert float((coarse - added).abs().max()) < 0.01 * float(added.max())


def test_sampling_that_is_too_coarse_and_light_that_is_cut_are_told():
    confocal = replace(WATER, mode="confocal", excitation=488)
    assert sampling_notes([replace(confocal, spacing=(0.1, 0.05, 0.05))], [torch.ones(9, 9, 9)]) == ()
    coarse = replace(WATER, spacing=(0.6, 0.2, 0.2))
    psfs = [microscope_psf(coarse, (21, 31, 31)), microscope_psf(coarse, (21, 61, 61))]
    notes = sampling_notes([coarse, replace(coarse, emission=700)], psfs)
    assert len(notes) == 3
    assert "planes of 0.6 µm are coarser" in notes[0]
    assert "pixels of 0.2 µm are coarser than the 0.118, 0.159 µm" in notes[1]
    kept = psfs[0][0].sum() / psfs[0][10].sum()
    assert f"outermost of the kernel's 21 planes keeps {100 * kept:.2g} %" in notes[2]
    assert WATER.finest[1] == pytest.approx(0.52 / (4 * 1.1))


def test_a_wide_field_takes_what_a_stack_can_feel_and_others_what_holds_light():
    assert WATER.psf_size((32, 500, 500))[0] == 63
    assert WATER.psf_size((32, 40, 50)) == (63, 79, 99)
    assert WATER.psf_size()[0] == 63
    light = microscope_psf(WATER, WATER.psf_size((16, 500, 500))).sum((1, 2))
    assert float(light.min() / light.max()) > 0.95
    confocal = replace(WATER, mode="confocal", excitation=488)
    assert confocal.psf_size((32, 500, 500))[0] < 25
    sheet = replace(WATER, mode="light-sheet", sheet=2.0)
    assert sheet.psf_size((32, 500, 500))[0] == 23
    assert sheet.psf_size((4, 500, 500))[0] == 7


def test_the_planes_are_those_of_the_package_psf_generator():
    """Written by others, as a judge of ours."""
    generator = pytest.importorskip("psf_generator", reason="it is installed with the extra dev")
    made = generator.VectorialSphericalPropagator(
        n_pix_pupil=501, n_pix_psf=31, wavelength=520, na=1.1, pix_size=100 * 30 / 31, defocus_step=250 * 8 / 9,
        n_defocus=9, apod_factor=True, n_i=1.333, n_i0=1.333,
    )  # fmt: skip
    seen = made.compute_focus_field().abs().double().square().sum(1)
    wanted = 0.5 * (seen + seen.mT)
    found = torch.stack([*focus_planes(WATER, 520, 31, 0.1, 9, 0.25)])
    assert float((found - wanted / wanted.max()).abs().max()) < 1e-3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"numerical_aperture": 1.4}, "below the refractive index"),
        ({"emission": -1.0}, "emission must be a positive number"),
        ({"mode": "x-ray"}, "mode must be one of"),
        ({"mode": "confocal"}, "needs excitation, the wavelength"),
        ({"mode": "light-sheet"}, "needs sheet, the width of the sheet"),
        ({"spacing": (0.1,)}, "spacing must hold two or three"),
        ({"spacing": (0.1, 0.2)}, "should be squares"),
        ({"depth": -1.0}, "depth must be zero or a positive number"),
        ({"emission": "green"}, "emission must be a positive number, but is 'green'"),
        ({"emission": 0.52}, "a wavelength of 100 to 3000 nm"),
        ({"spacing": (100, 50, 50)}, "distances of 0.001 to 20 µm"),
        ({"depth": 1e6}, "at most 1000 µm"),
    ],
)
def test_microscopes_that_cannot_be(change, says):
    with pytest.raises(UsageError, match=says):
        replace(WATER, **change)


def test_a_size_that_cannot_be():
    with pytest.raises(UsageError, match="odd number of samples"):
        microscope_psf(WATER, (4, 5, 5))
