"""The pictures of a page, read back by Pillow: stacks as cuts through one place with a slider, signals as lines."""

import base64
import dataclasses
import io

import numpy as np
import pytest
import torch
from browser import needs_browser
from PIL import Image

from deconv_cli.report import page_pictures
from deconv_cli.report.page_pictures import (
    ScaledImage,
    brightest_place,
    display_range,
    draw_cuts,
    draw_lines,
    draw_picture,
)


def decode(uri):
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        return np.asarray(picture.convert("RGBA"))


def test_shades_stand_for_values():
    values = torch.tensor([[0.0, 5.0, 10.0, -3.0, 20.0]])
    gray, mapped = (
        draw_picture(ScaledImage("a", values, 0.0, 10.0, "", "units", false_colors=mapped)) for mapped in (False, True)
    )
    assert decode(gray.uri)[0, :, 0].tolist() == [0, 128, 255, 0, 255]
    colors = [tuple(color[:3]) for color in decode(mapped.uri)[0].tolist()]
    assert colors[0] == colors[3] == (68, 1, 84)
    assert colors[2] == colors[4] == (253, 231, 37)
    assert "from -3 to 20, mean 6.4 units" in gray.alt
    assert ScaledImage("a", values, -1e-7, 12.3456, "", "").ends == ("0", "12.3")


def test_large_pictures_are_averaged():
    noise = torch.rand(300, 400, generator=torch.Generator().manual_seed(1))
    assert (draw_picture(ScaledImage("noise", noise, 0.0, 1.0, "", ""), 400).width) == 400
    half = draw_picture(ScaledImage("noise", noise, 0.0, 1.0, "", ""), 200)
    assert (half.width, half.height) == (200, 150)
    averaged = noise.reshape(150, 2, 200, 2).mean(dim=(1, 3))
    assert np.abs(decode(half.uri)[..., 0] / 256 - averaged.numpy()).max() < 1 / 128


def test_signals_are_lines_that_keep_their_peaks():
    values = torch.zeros(5000)
    values[1234] = 8.0
    lines = draw_lines(
        [ScaledImage("Input, channel 2", values, 0, 1, "", ""), ScaledImage("Residual", values, 0, 1, "", "")]
    )
    assert (lines.low, lines.high, list(lines.points)) == (0.0, 8.0, ["Input"])
    points = [tuple(map(float, point.split(","))) for point in lines.points["Input"].split()]
    assert len(points) == 2000
    assert {y for _, y in points} == {0.0, 1000.0}
    assert min(points, key=lambda point: point[1])[0] == pytest.approx(1000 * 1234 / 5000, abs=1)


def test_the_range_leaves_the_most_extreme_out():
    values = torch.arange(10_000.0)
    values[0], values[-1] = -1e9, float("nan")
    low, high = display_range(values)
    assert low == pytest.approx(10, abs=2)
    assert high == pytest.approx(9988, abs=3)
    assert display_range(torch.full((3, 3), 4.0)) == (3.5, 4.5)
    assert display_range(torch.full((3, 3), float("nan"))) == (-0.5, 0.5)


def test_pictures_share_a_scale_and_tensors_do_not(contents):
    given = contents()
    for is_picture in (True, False):
        shown = dataclasses.replace(given, data=100 * given.data).with_source(is_picture=is_picture, dtype="float32")
        first, second, *_ = shown.images()
        assert ((first.low, first.high) == (second.low, second.high)) is is_picture
        estimate = shown.run.reconstruction.image
        assert (first.low, first.high) == (
            display_range(shown.data, estimate) if is_picture else display_range(shown.data)
        )


def test_black_and_white_of_whole_numbers_are_those_of_their_range(contents):
    """An estimate that overshoots does not make the picture pale."""
    given = contents()
    estimate = 255 * torch.linspace(-0.5, 1.5, 60 * 72).reshape(1, 60, 72)
    before, after, *_ = given.with_result(image=estimate).images()
    assert (before.low, before.high) == (after.low, after.high) == (0.0, 255.0)
    below = dataclasses.replace(given, data=torch.zeros(1, 60, 72)).with_result(image=estimate.clamp(max=-1))
    assert (below.images()[0].low, below.images()[0].high) == (0.0, 255.0)


SPACING = (0.5, 0.2, 0.1)


def decoded(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def numbered(shape=(4, 6, 8), name="Estimate", **options):
    """A stack of ever lighter samples, drawn from 0 to 255."""
    values = torch.arange(shape[0] * shape[1] * shape[2], dtype=torch.float64).reshape(shape)
    return ScaledImage(name, values, 0.0, 256.0, "", "", **options)


@pytest.fixture(scope="module")
def page(full_contents):
    return full_contents(size=(8, 20, 24)).with_source(spacing=SPACING).render()


def test_the_planes_lie_one_below_another_and_the_cuts_go_through_one_place():
    cuts = draw_cuts([numbered()], SPACING)
    (picture,) = cuts.pictures
    depth, row, column = cuts.place
    values = numbered().values.numpy().astype("uint8")
    assert cuts.planes == (0, 1, 2, 3)
    np.testing.assert_array_equal(decoded(picture.uris[0]), values.reshape(24, 8))
    np.testing.assert_array_equal(decoded(picture.uris[1]), values[:, :, column].T)
    np.testing.assert_array_equal(decoded(picture.uris[2]), values[:, row])
    # Y is the longer axis in micrometers: 6 × 0.2 against 8 × 0.1.
    assert cuts.extent == pytest.approx((1000 * 2.0 / 1.2, 1000.0, 1000 * 0.8 / 1.2))
    assert cuts.middles[0] == pytest.approx(cuts.depths[depth], abs=0.01)
    assert "0.5 × 0.2 × 0.1 µm" in cuts.sentence


def test_the_place_is_bright_and_not_at_the_edge():
    stack = torch.zeros(16, 16, 24)
    stack[0, 0, 0] = 100.0
    stack[5, 9, 17] = 50.0
    assert all(abs(a - b) <= 1 for a, b in zip(brightest_place(stack), (5, 9, 17), strict=True))


def test_large_stacks_are_thinned_and_averaged(monkeypatch):
    monkeypatch.setattr(page_pictures, "MAX_PLANES", 3)
    monkeypatch.setattr(page_pictures, "MAX_PLANE_SIDE", 8)
    cuts = draw_cuts([numbered((10, 16, 12))], None)
    assert len(cuts.planes) <= 3
    assert cuts.place[0] in cuts.planes
    assert decoded(cuts.pictures[0].uris[0]).shape == (8 * len(cuts.planes), 6)
    assert "of 10 planes are shown" in cuts.sentence
    assert "at most 8 a side" in cuts.sentence
    monkeypatch.setattr(page_pictures, "MAX_PIXELS", 10)
    monkeypatch.setattr(page_pictures, "MIN_PLANE_SIDE", 4)
    assert "at most 4 a side" in draw_cuts([numbered((10, 16, 12))], None).sentence


def test_what_is_not_trusted_is_hatched_in_all_cuts():
    mask = torch.zeros(4, 6, 8, dtype=torch.bool)
    mask[:, :3] = True
    (picture,) = draw_cuts([numbered(mask=mask)], None).pictures
    planes, right, below = (Image.open(io.BytesIO(base64.b64decode(u.partition(",")[2]))) for u in picture.hatchings)
    assert (planes.size, right.size, below.size) == ((8, 24), (4, 6), (8, 4))
    stripes = np.asarray(planes).reshape(4, 6, 8)
    assert stripes[:, :3].any()
    assert not stripes[:, 3:].any()


def test_a_page_of_a_stack_has_cuts_and_a_slider(page):
    assert page.count('<svg class="cuts"') == 6  # input, estimate, truth, residual, and two errors
    assert 'data-planes="0 1 2 3 4 5 6 7"' in page
    assert "8×20×24 samples" in page
    assert len(page) < 1_500_000


@needs_browser
def test_the_slider_moves_all_planes_and_their_lines(page, browse):
    browser, path = browse(page)
    planes = "[...document.querySelectorAll('.planes')].map((image) => Number(image.getAttribute('y')))"
    height = browser.run("Number(document.querySelector('.planes').getAttribute('height')) / 8")
    browser.run("document.getElementById('plane').value = 6")
    browser.run("document.getElementById('plane').dispatchEvent(new Event('input'))")
    assert browser.run(planes) == pytest.approx([-6 * height] * 7)
    assert browser.run("document.getElementById('plane-number').textContent") == "7"
    moved = browser.run("document.querySelector('.plane-down').getAttribute('transform')")
    depths = browser.run("document.getElementById('plane').dataset.depths.split(' ')")
    assert moved == f"translate(0 {depths[6]})"
    assert (browser.requests, browser.messages, browser.dialogs) == ([path.as_uri()], [], [])


def test_signals_are_lines(full_contents):
    page = full_contents(n_channels=2, size=(64,)).render()
    assert 'aria-label="Input, Estimate, Truth: values from 0 to' in page
    assert page.count("<polyline") == 3
    assert '<svg class="cuts"' not in page
