"""Kernels that lie wrongly, against the mistake that was made with them."""

import pytest
import torch
from blurred_pictures import CURVE, blurred_picture, sharp_picture

import deconv_cli
from deconv_cli.errors import ShapeError
from deconv_cli.kernels.blind.alignment import ORIENTATIONS, scaled
from deconv_cli.kernels.blind.blurred_picture import describe_alignment
from deconv_cli.kernels.sources.formula import make_kernel

TAPS = make_kernel("motion:13@30")
TAPS = TAPS * torch.linspace(0.3, 1, TAPS.shape[1], dtype=TAPS.dtype)
TAPS = TAPS / TAPS.sum()
"""Asymmetric: light fades along the way."""
BLURRED = blurred_picture("astronaut", TAPS)
MARGINS = [n // 2 for n in TAPS.shape]
SHARP = sharp_picture("astronaut")[:, MARGINS[0] : -MARGINS[0], MARGINS[1] : -MARGINS[1]]


def unchanged(turn):
    """What undoes a turn: those by 90° and 270° undo one another, all others themselves."""
    return {"turned by 90°": "turned by 270°", "turned by 270°": "turned by 90°"}.get(turn, turn)


@pytest.mark.parametrize("turn", ORIENTATIONS)
def test_a_pair_tells_every_turn(turn):
    found = deconv_cli.align_kernel(ORIENTATIONS[turn](TAPS), BLURRED, sharp=SHARP, tone_curve=CURVE)
    assert (found.orientation, found.scale, found.shift) == (unchanged(turn), 1.0, (0, 0))
    assert float((found.taps - TAPS).abs().max()) < 1e-12


@pytest.mark.parametrize("turn", ORIENTATIONS)
def test_the_power_tells_turns_but_that_by_half(turn):
    found = deconv_cli.align_kernel(ORIENTATIONS[turn](TAPS), BLURRED, tone_curve=CURVE)
    corrected = ORIENTATIONS[found.orientation](ORIENTATIONS[turn](TAPS))
    assert corrected.shape == TAPS.shape
    assert min(float((corrected - t).abs().max()) for t in (TAPS, TAPS.flip((0, 1)))) < 1e-12


def test_a_kernel_of_another_scale_is_resized():
    wrong = scaled(TAPS, 1.43)
    assert wrong.shape[1] > 1.3 * TAPS.shape[1]
    found = deconv_cli.align_kernel(wrong, BLURRED, sharp=SHARP, tone_curve=CURVE)
    assert found.scale == pytest.approx(0.7)
    assert "scaled by 0.7" in found.changes
    assert float(found.taps.sum()) == pytest.approx(float(wrong.sum()))


def test_a_kernel_off_its_center_is_moved_back():
    wrong = torch.nn.functional.pad(
        TAPS, (6, 0, 0, 4)
    )  # its middle now lies 3 to the left of, and 2 below, the true one
    found = deconv_cli.align_kernel(wrong, BLURRED, sharp=SHARP, tone_curve=CURVE)
    assert found.shift == (2, -3)
    again = deconv_cli.align_kernel(found.taps, BLURRED, sharp=SHARP, tone_curve=CURVE)
    assert again.changes == ()


@pytest.mark.parametrize("unevenness", [0, 0.01])
def test_a_round_kernel_is_resized_and_not_turned(unevenness):
    wrong = make_kernel("gaussian:3")
    wrong = wrong * (1 + unevenness * torch.rand(wrong.shape, generator=torch.Generator().manual_seed(0)))
    found = deconv_cli.align_kernel(wrong, blurred_picture("camera", make_kernel("gaussian:1.5")), tone_curve=CURVE)
    assert found.orientation_changes == ("scaled by 0.5",)
    assert found.evidence > 100


@pytest.mark.parametrize(("given", "true"), [("disk:12", "disk:4.2"), ("disk:4.2", "disk:12")])
def test_no_factor_is_advised_for_a_kernel_of_quite_another_size(given, true):
    blurred = blurred_picture("camera", make_kernel(true))
    found = deconv_cli.align_kernel(make_kernel(given), blurred, tone_curve=CURVE)
    assert found.changes == ("of quite another size or shape",)
    (sentence,), _ = describe_alignment(make_kernel(given), blurred, tone_curve=CURVE)
    assert sentence.startswith("the kernel is of quite another size or shape than the blur of the picture")
    assert sentence.endswith("find the blur in the picture with deconv kernel estimate")


def test_a_kernel_of_another_shape_is_named():
    """No turn or size of a straight motion makes a disk."""
    blurred = blurred_picture("camera", make_kernel("disk:4"))
    (sentence,), _ = describe_alignment(make_kernel("motion:9@0"), blurred, tone_curve=CURVE)
    assert sentence.startswith("the kernel is of quite another size or shape")
    assert describe_alignment(make_kernel("disk:4"), blurred, tone_curve=CURVE) == ((), False)
    (sentence,), _ = describe_alignment(make_kernel("disk:5.3"), blurred, tone_curve=CURVE)
    assert "if it is scaled by 0.8" in sentence  # not of another shape, though 0.75 is between two scales


def test_only_a_wrong_kernel_is_accused_beside_saturated_pixels():
    """Of the spectrum of the whole picture, the right kernel is not the likeliest one."""
    blurred = blurred_picture("astronaut", make_kernel("disk:3.3"), exposure=1.6)
    said = [describe_alignment(make_kernel(kernel), blurred, tone_curve=CURVE) for kernel in ("disk:3.3", "disk:4.2")]
    assert said[0] == ((), False)
    assert "if it is scaled by 0.8" in said[1][0][0]


def test_the_change_is_read_far_from_saturated_pixels():
    """The spectrum of the whole picture calls a kernel that is too narrow too wide."""
    blurred = blurred_picture("astronaut", make_kernel("disk:4"), exposure=2.2)
    (sentence,), _ = describe_alignment(make_kernel("disk:3.3"), blurred, tone_curve=CURVE)
    assert "if it is scaled by 1.11" in sentence


def test_what_fits_is_left_alone():
    kernel = make_kernel("gaussian:1.8")
    found = deconv_cli.align_kernel(kernel, blurred_picture("camera", kernel), tone_curve=CURVE)
    assert (found.changes, found.evidence) == ((), 0.0)
    assert torch.equal(found.taps, kernel)


def test_the_window_of_a_spectrum_without_noise_does_not_make_a_kernel_too_wide():
    """The data are exact, so that at most frequencies the spectrum shows what the window brings from low ones."""
    exact = deconv_cli.forward(sharp_picture("camera").double(), make_kernel("gaussian:2"), padding="valid")
    assert deconv_cli.align_kernel(make_kernel("gaussian:2"), exact).changes == ()
    assert describe_alignment(make_kernel("gaussian:2"), exact) == ((), False)
    (sentence,), is_clear = describe_alignment(make_kernel("gaussian:4"), exact)
    assert "scaled by 0." in sentence
    assert is_clear
    (sentence,), is_clear = describe_alignment(make_kernel("gaussian:1.4"), exact)
    assert not is_clear  # a kernel that is too small does less harm


@pytest.mark.parametrize("blur", ["gaussian:1", "disk:6"])
def test_a_chart_of_squares_is_no_evidence_beyond_doubt(blur):
    """No kernel explains its spectrum, so that a right one seems far off."""
    rows, columns = torch.meshgrid(torch.arange(160) // 8, torch.arange(160) // 8, indexing="ij")
    chart = 0.2 + 0.6 * ((rows + columns) % 2).double()
    noise = 0.02 * torch.randn(160, 160, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    blurred = deconv_cli.forward(chart[None], make_kernel(blur), padding="same") + noise
    sentences, is_clear = describe_alignment(make_kernel(blur), blurred)
    assert (len(sentences), is_clear) == (1, False)


def test_refusals():
    with pytest.raises(ShapeError, match=r"must have the same size, but have .* pixels"):
        deconv_cli.align_kernel(TAPS, BLURRED, sharp=SHARP[:, 1:], tone_curve=CURVE)
    with pytest.raises(ShapeError, match="shape \\(kH, kW\\)"):
        deconv_cli.align_kernel(TAPS[None, None], BLURRED, tone_curve=CURVE)
    with pytest.raises(ShapeError, match="at most 128 × 128 taps"):
        deconv_cli.align_kernel(torch.ones(3, 201), BLURRED, tone_curve=CURVE)
    with pytest.raises(ShapeError, match="larger than the pictures"):
        deconv_cli.align_kernel(torch.ones(300, 3), BLURRED, sharp=SHARP, tone_curve=CURVE)


@pytest.mark.parametrize("size", [(4, 4), (4, 6), (5, 4)])
def test_an_even_kernel_that_is_right_is_left_alone(size):
    taps = torch.rand(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    taps = taps / taps.sum()
    before = [(n - 1) // 2 for n in size]
    after = [n - 1 - b for n, b in zip(size, before, strict=True)]
    height, width = sharp_picture("camera").shape[-2:]
    sharp = sharp_picture("camera")[:, before[0] : height - after[0], before[1] : width - after[1]]
    found = deconv_cli.align_kernel(taps, blurred_picture("camera", taps), sharp=sharp, tone_curve=CURVE)
    assert found.changes == ()


def test_stars_do_not_speak_against_a_kernel():
    """Their spectrum falls off with the kernel alone, and not as that of a scene."""
    random = torch.Generator().manual_seed(2)
    stars = torch.zeros(1, 128, 128)
    places = torch.randint(0, 128, (60, 2), generator=random)
    stars[0, places[:, 0], places[:, 1]] = 10 ** (3 + 1.5 * torch.rand(60, generator=random))
    kernel = make_kernel("moffat:4@2.8")
    y = torch.poisson(deconv_cli.forward(stars, kernel, padding="same", boundary="zero") + 50, generator=random)
    assert describe_alignment(kernel, y) == ((), False)
