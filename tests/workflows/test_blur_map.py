"""The blur found in each part of a picture, against what was done there."""

import pytest
import torch
from blurred_pictures import CURVE, sharp_picture

import deconv_cli
from deconv_cli.errors import UntrustworthyResultError


def tiled(kernels):
    """Copies of a sharp picture side by side, each under a kernel of its own, shape (3, 250, 250·n), uint8."""
    light = CURVE.to_light(sharp_picture("astronaut").double())
    blurred = [
        torch.nn.functional.conv2d(light[:, None], deconv_cli.make_kernel(k)[None, None], padding="same")[:, 0]
        for k in kernels
    ]
    stored = CURVE.to_stored(torch.cat([b[:, 3:-3, 3:-3] for b in blurred], 2))
    noise = torch.randn(stored.shape, generator=torch.Generator().manual_seed(0), dtype=stored.dtype)
    return stored.add(0.5 * noise).round().clamp(0, 255).to(torch.uint8)


def test_a_blur_that_is_the_same_everywhere():
    found = deconv_cli.map_blur(tiled(["disk:2.5"] * 3), tone_curve=CURVE)
    assert found.is_uniform
    assert found.whole.family == "disk"
    assert len(found.found) >= 2
    assert all(part.parameters[0].value == pytest.approx(2.5, rel=0.1) for part in found.found)


def test_a_blur_that_grows_across_the_frame():
    found = deconv_cli.map_blur(tiled(["disk:2.5", "disk:2.5", "disk:5", "disk:5"]), tone_curve=CURVE)
    assert not found.is_uniform
    radii = [part.parameters[0].value for part in (found.parts[0][0], found.parts[0][-1])]
    assert radii == pytest.approx([2.5, 5], rel=0.1)
    field = found.field()
    assert field.grid == (len(found.rows), len(found.columns))
    assert torch.allclose(field.taps.sum((2, 3)), torch.ones(field.grid, dtype=torch.float64))
    # Its kernels grow as the disks do.
    areas = 1 / field.taps.square().sum((2, 3))[0]
    assert float(areas[-1]) > 3 * float(areas[0])


def test_a_sharp_picture_has_no_field():
    found = deconv_cli.map_blur(sharp_picture("astronaut"), tone_curve=CURVE)
    assert found.is_uniform
    with pytest.raises(UntrustworthyResultError, match="no blur was found"):
        found.field()
