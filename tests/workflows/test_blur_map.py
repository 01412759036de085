"""The blur found in each part of a picture, against what was done there."""

import pytest
import torch
from blurred_pictures import CURVE, sharp_picture

import deconv_cli
from deconv_cli.errors import UntrustworthyResultError


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
