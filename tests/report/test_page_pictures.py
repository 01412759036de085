"""The pictures of a page, read back by Pillow."""

import base64
import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from deconv_cli.report.page_pictures import ScaledImage, display_range, draw_lines, draw_picture


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
