"""What JPEG changed is estimated from the picture alone."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from deconv_cli.diagnostics.jpeg_noise import estimate_jpeg_noise

SAMPLES = Path(__file__).parents[2] / "sample_images"


def scene():
    """A blurred photograph of odd sides."""
    picture = Image.open(SAMPLES / "astronaut.png").convert("RGB").crop((0, 0, 251, 243))
    return picture.filter(ImageFilter.GaussianBlur(1.5))


def samples(picture):
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float()


def compressed(picture, quality):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file)


@pytest.mark.parametrize("quality", [70, 75, 85])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_error_is_found_within_half_of_itself(quality, mode):
    picture = scene().convert(mode)
    before, after = samples(picture), samples(compressed(picture, quality))
    if mode == "L":
        before, after = before[:1], after[:1]
    real = (after - before).square().mean(dim=(1, 2)).sqrt()
    found = estimate_jpeg_noise(after)
    assert found is not None
    assert ((found > 0.5 * real) & (found < 1.5 * real)).all()


def test_a_coarser_file_has_a_larger_error():
    found = [float(estimate_jpeg_noise(samples(compressed(scene(), quality)))[1]) for quality in (95, 85, 70)]
    assert found[0] < found[1] < found[2]


def test_the_blocks_may_begin_anywhere():
    whole = samples(compressed(scene(), 80))
    for top, left in ((0, 3), (5, 0), (7, 6)):
        assert torch.allclose(estimate_jpeg_noise(whole[:, top:, left:]), estimate_jpeg_noise(whole), rtol=0.1)


def test_no_trace_is_seen_where_there_is_none():
    noisy = samples(scene()) + 2 * torch.randn(3, 243, 251, generator=torch.Generator().manual_seed(0))
    assert estimate_jpeg_noise(samples(scene())) is None
    assert estimate_jpeg_noise(noisy.round()) is None
    assert estimate_jpeg_noise(torch.zeros(3, 64, 64)) is None
    assert estimate_jpeg_noise(torch.zeros(2, 64, 64)) is None
    assert estimate_jpeg_noise(torch.zeros(3, 7, 64)) is None
