"""Measured point-spread functions: what is noticed of them, and what cleaning leaves."""

from pathlib import Path

import pytest
import tifffile
import torch

from deconv_cli.kernels.sources.formula import make_kernel
from deconv_cli.measured_light import clean_psf, describe_flaws, looks_like_photograph, refusal_of
from deconv_cli.models.kernel_files import read_kernel

SAMPLES = Path(__file__).parents[2] / "sample_images"


def spot(side=31, sigma=2.0, row=0.0, column=0.0, peak=4000.0):
    """A bright spot, off the middle by a number of pixels."""
    places = torch.arange(side, dtype=torch.float64) - (side - 1) // 2
    return peak * torch.exp(-((places[:, None] - row) ** 2 + (places - column) ** 2) / (2 * sigma**2))


FORMULAS = ["gaussian:1", "gaussian:4", "disk:3", "disk:6.4", "box:5", "box:9", "motion:9@30", "motion:21@75"]


@pytest.mark.parametrize("name", ["camera.png", "astronaut.png"])
def test_a_photograph_is_no_point_spread_function(name):
    assert looks_like_photograph(read_kernel(SAMPLES / name).kernel)


@pytest.mark.parametrize("formula", ["gaussian:8", "disk:30", "box:41", "motion:61@75", "moffat:3.3@2.5"])
def test_a_wide_point_spread_function_is_no_photograph(formula):
    taps = make_kernel(formula)
    assert not looks_like_photograph(taps)
    assert not looks_like_photograph(spot(side=101) + 5)  # 80 % background


@pytest.mark.parametrize("formula", FORMULAS)
def test_formulas_have_no_flaws(formula):
    assert describe_flaws(make_kernel(formula)) == ()


@pytest.mark.parametrize("width", [1, 2, 5, 8, 12])
def test_tails_that_reach_the_frame_are_no_background(width):
    squared = spot(sigma=0.5**0.5, peak=1.0).log().neg()
    assert describe_flaws((1 + squared / width**2) ** -1.5) == ()
    assert describe_flaws(torch.exp(-squared / (2 * width**2))) == ()


@pytest.mark.parametrize(
    ("taps", "says"),
    [
        (spot(side=15) + 100, ["background", "subtracts"]),
        (spot(side=41).where(spot(side=41) > 1, 0), ["empty margin: only 17", "crops"]),
        (spot(side=15, row=1.5), ["1.5 pixels off", "centers"]),
    ],
)
def test_each_flaw_has_its_sentence(taps, says):
    (found,) = describe_flaws(taps)
    assert all(part in found for part in [*says, "clean_kernel=True"])


@pytest.mark.parametrize("offset", [(0, 0), (2, -1), (-3, 5)])
def test_cleaning_finds_the_spot_again(offset):
    seen = spot(64, 2.0, *offset) + 100
    noisy = torch.poisson(seen, generator=torch.Generator().manual_seed(0))
    cleaned, note = clean_psf(noisy)
    assert cleaned.shape[0] % 2 == cleaned.shape[1] % 2 == 1
    assert max(cleaned.shape) < 40
    assert describe_flaws(cleaned) == ()
    middle = cleaned.shape[0] // 2, cleaned.shape[1] // 2
    assert divmod(int(cleaned.argmax()), cleaned.shape[1]) == middle
    assert float(cleaned.sum()) == pytest.approx(float(spot(64).sum()), rel=0.03)
    assert "a background of 100 was subtracted, its 64×64 taps were cropped" in note


def test_tails_and_the_place_between_pixels_are_kept():
    """Measured on a spot with a halo: at least 95 % of the light, and the center to a tenth of a pixel."""
    truth = spot(64, 1.5, 2.5, -3.4) + spot(64, 6.0, 2.5, -3.4, peak=120)
    cleaned, _ = clean_psf(torch.poisson(truth + 40, generator=torch.Generator().manual_seed(2)))
    assert float(cleaned.sum() / truth.sum()) == pytest.approx(1, abs=0.05)
    for axis in (0, 1):
        line = cleaned.sum(1 - axis)
        center = float((line * torch.arange(len(line))).sum() / line.sum())
        assert center == pytest.approx(len(line) // 2, abs=0.1)


def test_a_kernel_that_spoils_is_refused_and_others_are_not():
    assert "background is 79 %" in str(refusal_of(spot(64, 2.0) + 90))
    assert "5.0 pixels off" in str(refusal_of(spot(31, 2.0, row=5)))
    assert refusal_of(spot(15, row=1.5) + 2) is None
    assert all(refusal_of(make_kernel(formula)) is None for formula in FORMULAS)


def test_a_file_is_cleaned_on_reading(tmp_path):
    seen = (spot(row=2, column=1) + 100).numpy().round().astype("uint16")
    tifffile.imwrite(tmp_path / "bead.tif", seen)
    found = read_kernel(tmp_path / "bead.tif")
    assert len(found.picture_notes) == 3
    cleaned = read_kernel(tmp_path / "bead.tif", clean=True)
    assert cleaned.picture_notes == ()
    assert float(cleaned.kernel.sum()) == pytest.approx(1, rel=1e-6)
    height, width = cleaned.kernel.shape
    assert divmod(int(cleaned.kernel.argmax()), width) == (height // 2, width // 2)


def bead(size=(15, 21, 23), center=(7, 10, 11), peak=4000.0):
    """A bright spot in a stack, longer along Z, on a flat background of nothing."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
    widths = (2.0, 1.2, 1.2)
    squared = sum(((x - c) / w) ** 2 for x, c, w in zip(axes, center, widths, strict=True))
    return peak * torch.exp(-squared / 2)


def test_flaws_of_a_stack_are_found_along_every_axis():
    assert describe_flaws(bead()[1:14, 4:17, 5:18], 3) == ()
    assert any("background" in flaw for flaw in describe_flaws(bead() + 100, 3))
    assert any("2.0 pixels off" in flaw for flaw in describe_flaws(bead((15, 15, 15), (9, 7, 7)), 3))
    empty = bead((31, 31, 31), (15, 15, 15))
    assert any("of its 31×31×31 taps" in flaw for flaw in describe_flaws(empty.where(empty > 1, 0), 3))


def test_a_cleaned_stack_has_its_bead_in_the_middle():
    noisy = torch.poisson(bead(center=(5, 12, 9)) + 100, generator=torch.Generator().manual_seed(0))
    cleaned, note = clean_psf(noisy, 3)
    assert all(n % 2 == 1 for n in cleaned.shape)
    assert torch.unravel_index(cleaned.argmax(), cleaned.shape) == tuple(n // 2 for n in cleaned.shape)
    assert describe_flaws(cleaned, 3) == ()
    assert "15×21×23 taps were cropped to" in note
    both, _ = clean_psf(torch.stack([noisy, noisy.flip(0)]), 3)
    assert both.ndim == 4
