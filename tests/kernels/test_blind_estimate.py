"""Kernels found in one blurred picture and in its parts, against those that blurred it."""

from dataclasses import replace

import pytest
import torch
from blurred_pictures import CURVE, blurred_picture, sharp_picture

import deconv_cli
from deconv_cli.errors import MalformedInputError, ShapeError, UntrustworthyResultError, UsageError
from deconv_cli.kernels.blind.estimate import compare_parts
from deconv_cli.kernels.blind.polar_spectrum import measure_spectrum, polar_grid
from deconv_cli.kernels.sources.formula import make_kernel


def numbers(estimate):
    return [p.value for p in estimate.parameters]


@pytest.mark.parametrize("name", ["camera", "astronaut"])
@pytest.mark.parametrize(
    ("kernel", "tolerance"),
    [("disk:3.3", 0.08), ("motion:9.5@37", 0.08), ("gaussian:1.8", 0.15)],
)
def test_the_family_and_its_numbers_are_found(name, kernel, tolerance):
    picture = blurred_picture(name, make_kernel(kernel))
    found = deconv_cli.estimate_kernel(picture, tone_curve=CURVE)
    family, _, rest = kernel.partition(":")
    assert (found.found, found.family) == (True, family)
    wanted = [float(n) for n in rest.split("@")]
    assert numbers(found)[0] == pytest.approx(wanted[0], rel=tolerance)
    assert numbers(found)[1:] == pytest.approx(wanted[1:], abs=5)
    for parameter, truth in zip(found.parameters, wanted, strict=True):
        assert abs(parameter.value - truth) < 4 * parameter.error
        assert parameter.error < 0.25 * truth
    assert found.log_likelihood_ratio > 0
    assert found.runner_up.family != family
    assert float(found.taps().sum()) == pytest.approx(1)


@pytest.mark.parametrize("name", ["camera", "astronaut"])
def test_a_sharp_picture_is_not_accused(name):
    found = deconv_cli.estimate_kernel(sharp_picture(name), tone_curve=CURVE)
    assert (found.found, found.family, found.parameters, found.text) == (False, "none", (), "none")
    assert found.taps().tolist() == [[1.0]]


def test_the_sharpest_parts_give_the_size_where_others_are_out_of_focus():
    narrow, wide = (blurred_picture("camera", make_kernel(f"gaussian:{sigma}")) for sigma in (1.3, 4))
    spectra = [measure_spectrum(CURVE.to_light(picture.double())[0]) for picture in (narrow, wide)]
    found = deconv_cli.estimate_kernel(narrow, tone_curve=CURVE)
    assert found.family == "gaussian"
    too_wide = replace(found.candidates[0], numbers=(2.5,))
    number = replace(found.parameters[0], value=2.5)
    estimate = replace(found, parameters=(number,), candidates=(too_wide, *found.candidates[1:]))
    sharpest = compare_parts(estimate, [*spectra[1:] * 3, spectra[0]])
    assert numbers(sharpest) == pytest.approx([1.3], rel=0.2)
    assert sharpest.whole is too_wide
    assert sharpest.log_likelihood_ratio is None
    assert f"gaussian:2.5 fits the whole picture, but {sharpest.text} fits its sharpest parts" in sharpest.note
    for parts in (spectra[1:] * 2, []):
        assert compare_parts(estimate, parts) is estimate
    assert estimate.note is None


def test_sharp_parts_of_a_blurred_picture_mean_no_blur():
    sharp = measure_spectrum(CURVE.to_light(sharp_picture("camera").double())[0])
    found = deconv_cli.estimate_kernel(blurred_picture("camera", make_kernel("gaussian:1.3")), tone_curve=CURVE)
    assert not compare_parts(found, [sharp, sharp]).found


def test_a_photograph_is_not_blurred_by_the_atmosphere():
    picture = blurred_picture("camera", make_kernel("moffat:3@2"))
    names = [{c.family for c in deconv_cli.estimate_kernel(picture, tone_curve=c).candidates} for c in (CURVE, None)]
    assert ["moffat" in families for families in names] == [False, True]


def test_a_kernel_that_the_parts_contradict_is_none():
    picture = blurred_picture("camera", make_kernel("disk:3.3"))
    found = deconv_cli.estimate_kernel(picture, tone_curve=CURVE)
    sharp, blurred = (measure_spectrum(CURVE.to_light(p.double())[0]) for p in (sharp_picture("camera"), picture))
    assert compare_parts(found, [blurred]) is found
    assert not compare_parts(found, [blurred, *[sharp] * 9]).found


def test_lamps_do_not_outshine_a_dark_scene():
    taps = make_kernel("motion:13@70")
    light = 0.15 * CURVE.to_light(sharp_picture("camera").double())
    lamps = torch.tensor([[40, 50], [70, 200], [120, 90], [150, 180], [200, 60], [230, 220]])
    for row, column in lamps.tolist():
        light[:, row : row + 4, column : column + 4] = 20 * 255
    blurred = deconv_cli.forward(light, taps, padding="valid").clamp(0, 255)
    noise = 0.3 * torch.randn(blurred.shape, generator=torch.Generator().manual_seed(0), dtype=blurred.dtype)
    seen = CURVE.to_stored(blurred).add(noise).round().clamp(0, 255).byte()
    found = deconv_cli.estimate_kernel(seen, tone_curve=CURVE)
    assert found.family == "motion"
    assert numbers(found) == pytest.approx([13, 70], rel=0.04)


def test_a_blur_is_found_beside_saturated_pixels():
    """Their outlines are sharp, and hide the blur of the rest."""
    found = deconv_cli.estimate_kernel(
        blurred_picture("camera", make_kernel("disk:3.3"), exposure=1.6), tone_curve=CURVE
    )
    assert found.saturated > 0.1
    assert found.family == "disk"
    assert numbers(found) == pytest.approx([3.3], rel=0.02)


def test_the_blades_of_a_diaphragm_are_counted():
    picture = blurred_picture("astronaut", make_kernel("polygon:6@6@10"), sigma=0.05)
    found = deconv_cli.estimate_kernel(picture, tone_curve=CURVE, families=["polygon", "disk"])
    assert found.family == "polygon"
    assert numbers(found)[:2] == pytest.approx([6, 6], rel=0.05)
    assert found.parameters[0].error == 0


def test_only_the_families_asked_for_are_answers():
    picture = blurred_picture("camera", make_kernel("disk:3.3"))
    found = deconv_cli.estimate_kernel(picture, tone_curve=CURVE, families="gaussian")
    assert {c.family for c in found.candidates} == {"gaussian", "none"}
    with pytest.raises(UsageError, match="a family must be one of gaussian, disk"):
        deconv_cli.estimate_kernel(picture, families=["box"])


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (torch.rand(1, 60, 400), ShapeError, "at least 64 × 128 pixels, but this one has 60 × 400"),
        (torch.rand(2, 1, 300, 300), ShapeError, "shape \\(C, H, W\\)"),
        (torch.rand(1, 16, 64, 128), ShapeError, "one plane of a stack"),
        (torch.full((1, 300, 300), torch.nan), MalformedInputError, "NaN or infinite"),
        *((torch.full((1, 200, 300), value), MalformedInputError, "no detail") for value in (0.0, 7.0)),
    ],
)
def test_what_is_no_picture_is_refused(image, error, words):
    with pytest.raises(error, match=words):
        deconv_cli.estimate_kernel(image)


def test_white_noise_has_power_one_in_every_cell():
    noise = torch.randn(512, 512, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spectrum = measure_spectrum(noise, side=128)
    weights = spectrum.grid.counts
    assert float((spectrum.power * weights).sum() / weights.sum()) == pytest.approx(1, rel=0.01)
    assert spectrum.n_pieces == 49


def test_the_gain_is_the_power_that_a_blur_leaves():
    """Of white light, what a kernel leaves in each cell is |H|² there, the spread by the window included."""
    noise = torch.randn(1, 1, 1500, 1500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    taps = make_kernel("motion:9@30")
    left = measure_spectrum(torch.nn.functional.conv2d(noise, taps[None, None])[0, 0], side=128)
    gain = polar_grid(128).gain(taps)
    is_sure = left.grid.counts * left.n_pieces > 2000
    assert float((left.power / gain)[is_sure].sub(1).abs().max()) < 0.15
    # The direction is the picture's own: light moved along 30° keeps what varies across it.
    across = (left.grid.direction - torch.pi * 2 / 3).abs() < 0.2
    along = (left.grid.direction - torch.pi / 6).abs() < 0.2
    high = left.grid.frequency > 0.1
    assert float(gain[across & high].mean()) > 5 * float(gain[along & high].mean())


def test_a_family_without_a_candidate_finds_no_blur():
    found = deconv_cli.estimate_kernel(sharp_picture("camera"), tone_curve=CURVE, families=["polygon"])
    assert (found.found, found.runner_up, found.log_likelihood_ratio) == (False, None, None)


def tiled(kernels):
    """A scene of copies of a picture side by side, each seen through a kernel of its own, (3, 244, 244·n), uint8."""
    light = CURVE.to_light(sharp_picture("astronaut").double())
    scene = torch.cat([light[:, 6:-6, 6:-6]] * len(kernels), 2)
    width = scene.shape[2] // len(kernels)
    parts = [
        torch.nn.functional.conv2d(scene[:, None], deconv_cli.make_kernel(k)[None, None], padding="same")[:, 0]
        for k in kernels
    ]
    seen = torch.cat([part[..., i * width : (i + 1) * width] for i, part in enumerate(parts)], 2)
    stored = CURVE.to_stored(seen)
    noise = torch.randn(stored.shape, generator=torch.Generator().manual_seed(0), dtype=stored.dtype)
    return stored.add(0.5 * noise).round().clamp(0, 255).to(torch.uint8)


def areas(field):
    """Pixels that the kernels of a field cover."""
    return 1 / field.taps.square().sum((2, 3))


def test_a_blur_that_is_the_same_everywhere():
    found = deconv_cli.map_blur(tiled(["disk:3.5"] * 3), tone_curve=CURVE)
    assert found.is_uniform is True
    assert len(found.found) >= 2
    assert areas(found.field()).flatten().tolist() == pytest.approx(
        [float(1 / deconv_cli.make_kernel("disk:3.5").square().sum())] * len(found.columns), rel=0.1
    )


def test_a_blur_that_grows_across_the_frame():
    found = deconv_cli.map_blur(tiled(["disk:3", "disk:3", "disk:5.5", "disk:5.5"]), tone_curve=CURVE)
    assert found.is_uniform is False
    field = found.field()
    assert field.grid == (len(found.rows), len(found.columns))
    assert torch.allclose(field.taps.sum((2, 3)), torch.ones(field.grid, dtype=torch.float64))
    ends = areas(field)[0, [0, -1]].tolist()
    wanted = [float(1 / deconv_cli.make_kernel(k).square().sum()) for k in ("disk:3", "disk:5.5")]
    assert ends == pytest.approx(wanted, rel=0.2)


def test_a_sharp_picture_has_no_field():
    found = deconv_cli.map_blur(sharp_picture("astronaut"), tone_curve=CURVE)
    assert found.is_uniform is None
    with pytest.raises(UntrustworthyResultError, match="no blur was found"):
        found.field()


@pytest.mark.parametrize("family", ["airy", "polygon"])
def test_a_family_alone_that_finds_nothing_is_no_error(family):
    found = deconv_cli.map_blur(sharp_picture("astronaut"), tone_curve=CURVE, families=[family])
    assert (found.found, found.is_uniform) == ([], None)
