"""The pictures of a page, read back by Pillow."""

import base64
import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from deconv_cli.report import page_pictures
from deconv_cli.report.page_pictures import ScaledImage, display_range, draw_pictures, encode_png


def read(content):
    with Image.open(io.BytesIO(content)) as picture:
        picture.load()
        return picture.convert("RGBA"), picture.mode


@pytest.mark.parametrize(("shape", "mode"), [((7, 5), "L"), ((7, 5, 3), "RGB"), ((1, 1), "L")])
def test_samples_come_back(shape, mode):
    samples = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found, found_mode = read(encode_png(samples))
    assert found_mode == mode
    colors = samples if samples.ndim == 3 else samples[..., None].expand(*shape, 3)
    assert np.array_equal(np.asarray(found)[..., :3], colors.numpy())


def test_a_palette_gives_its_colors_and_its_holes():
    palette = torch.tensor([[1, 2, 3], [230, 159, 0]], dtype=torch.uint8)
    samples = torch.tensor([[0, 1, 1], [1, 0, 0]], dtype=torch.uint8)
    found, mode = read(encode_png(samples, palette, transparency=0))
    assert mode == "P"
    assert found.getpixel((1, 0)) == (230, 159, 0, 255)
    assert found.getpixel((0, 0))[3] == 0


def decode(uri):
    return read(base64.b64decode(uri.partition(",")[2]))[0]


def test_shades_stand_for_values():
    values = torch.tensor([[0.0, 5.0, 10.0, -3.0, 20.0]])
    (gray, mapped), side = draw_pictures(
        [ScaledImage("a", values, 0.0, 10.0, "", "units"), ScaledImage("b", values, 0.0, 10.0, "", "units", "viridis")]
    )
    assert side == 5
    assert np.asarray(decode(gray.uri))[0, :, 0].tolist() == [0, 128, 255, 0, 255]
    colors = [tuple(color) for color in np.asarray(decode(mapped.uri))[0].tolist()]
    assert colors[0] == colors[3] == (68, 1, 84, 255)
    assert colors[2] == colors[4] == (253, 231, 37, 255)
    assert "from -3 to 20, mean 6.4 units" in gray.alt


def test_large_pictures_are_averaged_until_they_fit(monkeypatch):
    noise = torch.rand(300, 400, generator=torch.Generator().manual_seed(1))
    (whole,), side = draw_pictures([ScaledImage("noise", noise, 0.0, 1.0, "", "")])
    assert (whole.width, whole.height, side) == (400, 300, 400)
    monkeypatch.setattr(page_pictures, "MAX_SIDE", 200)
    (half,), side = draw_pictures([ScaledImage("noise", noise, 0.0, 1.0, "", "")])
    assert (half.width, half.height, side) == (200, 150, 200)
    averaged = noise.reshape(150, 2, 200, 2).mean(dim=(1, 3))
    shades = np.asarray(decode(half.uri))[..., 0]
    assert np.abs(shades / 256 - averaged.numpy()).max() < 1 / 128
    monkeypatch.setattr(page_pictures, "MAX_BYTES", 60_000)
    small, side = draw_pictures([ScaledImage(name, noise, 0.0, 1.0, "", "") for name in "abc"])
    assert side < 200
    assert sum(len(picture.uri) for picture in small) <= 60_000 * 4 / 3 + 300


def test_hatching_lies_where_the_mask_is():
    mask = torch.zeros(60, 60, dtype=torch.bool)
    mask[:, 30:] = True
    (picture,), _ = draw_pictures([ScaledImage("a", torch.rand(60, 60), 0.0, 1.0, "", "", mask=mask)])
    opaque = np.asarray(decode(picture.hatching_uri))[..., 3] > 0
    assert not opaque[:, :30].any()
    assert 0.2 < opaque[:, 30:].mean() < 0.8


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
        (first, second, *_), _ = shown.images()
        assert ((first.low, first.high) == (second.low, second.high)) is is_picture
        estimate = shown.run.reconstruction.image
        assert (first.low, first.high) == (
            display_range(shown.data, estimate) if is_picture else display_range(shown.data)
        )


def test_black_and_white_of_whole_numbers_are_those_of_their_range(contents):
    """An estimate that overshoots does not make the picture pale."""
    given = contents()
    estimate = 255 * torch.linspace(-0.5, 1.5, 60 * 72).reshape(1, 60, 72)
    (before, after, *_), _ = given.with_result(image=estimate).images()
    assert (before.low, before.high) == (after.low, after.high) == (0.0, 255.0)
    below = dataclasses.replace(given, data=torch.zeros(1, 60, 72)).with_result(image=estimate.clamp(max=-1))
    assert (below.images()[0][0].low, below.images()[0][0].high) == (0.0, 255.0)
