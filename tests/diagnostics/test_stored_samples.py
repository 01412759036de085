"""What JPEG changed, what a quantizer leaves of the coefficients of blocks, and the image that is found behind it."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import random
from PIL import Image, ImageFilter

import deconv_cli
from deconv_cli.diagnostics.error_prediction import apply_compression
from deconv_cli.diagnostics.image_model import ImageModel, _basis, fit_image_model
from deconv_cli.diagnostics.noise_spectrum import SpectrumBasis, fit_noise_spectrum
from deconv_cli.diagnostics.periodic_extension import PeriodicExtension
from deconv_cli.diagnostics.stored_samples import estimate_jpeg_noise, gain_in_blocks, part_left
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.noise_model import FREQUENCIES, NoiseModel

SIZE = (128, 128)
MOTION = deconv_cli.make_kernel("motion:11@0").double()


@pytest.mark.parametrize("step", [0.3, 1.5, 4.0, 8.0])
def test_a_quantizer_leaves_that_part_of_laplacian_coefficients(step):
    uniform = torch.rand(10**6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    drawn = -uniform.sign() * (1 - 2 * uniform.abs()).log()
    power = drawn.square().mean()
    found = (drawn * (drawn / step).round() * step).mean() / power
    assert float(part_left(step**2 / 12 / power)) == pytest.approx(float(found), abs=0.01)


@pytest.mark.parametrize("torus", [(20,), (18, 24)])
def test_the_gain_in_blocks_is_the_variance_of_a_coefficient(torus):
    """Of a wave over a block, by the covariance matrix of filtered white images."""
    n_axes = len(torus)
    taps = torch.rand((5,) * n_axes, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    filtered = torch.fft.rfftn(taps, s=torus).abs().square()
    images = torch.eye(math.prod(torus), dtype=torch.float64).reshape(-1, *torus)
    axes = tuple(range(1, n_axes + 1))
    rows = torch.fft.irfftn(torch.fft.rfftn(images, dim=axes) * filtered, s=torus, dim=axes)
    block = torch.zeros(torus, dtype=torch.bool)
    block[(slice(8),) * n_axes] = True
    covariance = rows.flatten(1)[block.flatten()][:, block.flatten()]
    number = (3, 2)[:n_axes]
    places = block.nonzero().double()
    phases = places @ torch.tensor([2 * math.pi * k / n for k, n in zip(number, torus, strict=True)]).double()
    wave = torch.polar(torch.ones_like(phases), phases) / 8 ** (n_axes / 2)
    variance = (wave.conj() @ covariance.to(wave.dtype) @ wave).real
    torch.testing.assert_close(gain_in_blocks(filtered, torus)[number], variance)


def isotropic(exponent, size):
    """A model of images of unit variance without noise, with amplitudes 1 / θᵖ in all directions."""
    one = torch.eye(1, dtype=torch.float64)
    coefficients = one.new_zeros(_basis((2,) * len(size), one).shape[1])
    coefficients[-1] = -exponent
    coefficients[0] = -ImageModel(coefficients, one, 0.0).power(size).mean().log()
    return ImageModel(coefficients, one, 0.0)


def test_an_image_is_not_taken_to_be_smoother_than_it_is_for_what_was_rounded_to_zero():
    known = isotropic(1.2, SIZE)
    scene = 40 * known.draw(1, SIZE, 3, torch.float64)[0]
    y = rounded(deconv_cli.forward(scene, MOTION, boundary="circular"), step=8.0)
    kernel = Kernel.from_tensor(MOTION)
    noise = fit_noise_spectrum(y[None], SpectrumBasis.of(kernel.taps, SIZE), is_colored=True)
    continuation = PeriodicExtension(kernel, SIZE, boundary="circular", penalty="gradient", noise=noise)
    found = fit_image_model(continuation, y, scene, lam=1e-2)
    ratio = (found.power(SIZE) / (1600 * known.power(SIZE)))[0, 1:]  # across the motion nothing is blurred
    assert found.exponent == pytest.approx(1.2, abs=0.1)
    assert 0.8 < float(ratio[20:].log().mean().exp()) < 1.25


def rounded(y, step):
    """Round the cosine transforms of the blocks of 8 × 8 samples of data `(1, H, W)` to multiples of a step."""
    order = torch.arange(8, dtype=torch.float64)
    waves = (math.pi / 16 * order[:, None] * (2 * order + 1)).cos() / 2
    waves[0] /= math.sqrt(2)
    blocks = waves @ y.unfold(-2, 8, 8).unfold(-2, 8, 8) @ waves.T
    return (waves.T @ ((blocks / step).round() * step) @ waves).transpose(-3, -2).reshape(y.shape)


TORUS = (48, 40)
TAPS = torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64)
COLORED = NoiseModel(None, tuple(2 if f < 0.25 else 0.5 for f in FREQUENCIES))
MODEL = ImageModel(
    torch.tensor([3.0, 0.3, 0.0, 0.0, 0.0, -1.2], dtype=torch.float64),
    torch.eye(1, dtype=torch.float64),
    sigma=0.6,
    noise=COLORED,
)


def test_strong_detail_is_left_and_weak_detail_is_lost():
    share = MODEL.share_left(TAPS, TORUS)
    assert share[0, 1] > 0.99
    assert share[0, 13] < share[0, 5] < share[0, 1]  # the kernel hides a third of a cycle a pixel
    assert float(share.min()) >= 0
    drawn = MODEL.draw(400, TORUS, 3, torch.float64)
    kept, before = (
        torch.fft.rfft2(x).abs().square().mean(dim=(0, 1)) for x in (apply_compression(drawn, MODEL, TAPS), drawn)
    )
    torch.testing.assert_close((kept / before)[1:, 1:], share.square()[1:, 1:])


def test_the_power_of_a_small_stack_is_not_spread_over_what_it_is_continued_to():
    """Of 12 planes behind a kernel of 9 most of the torus is continued, without detail."""
    known = isotropic(1.4, (40, 48, 48))
    scene = known.draw(1, (40, 48, 48), seed=3, dtype=torch.float64)[0, :, :20, :40, :40]
    kernel = deconv_cli.make_kernel("gaussian3d:1.2@1.2")
    kernel = kernel[tuple(slice((n - 9) // 2, (n + 9) // 2) if n > 9 else slice(None) for n in kernel.shape)]
    y = deconv_cli.forward(scene, kernel, dimensions=3, padding="valid")
    y = y + 0.02 * random(tuple(y.shape), seed=4)
    result = deconv_cli.invert(y, kernel, dimensions=3, boundary="unknown", lam=1e-3)
    continuation = PeriodicExtension(
        Kernel.of_any(kernel, dimensions=3), tuple(y.shape[1:]), boundary="unknown", penalty="gradient"
    )
    found = fit_image_model(continuation, y, result.image, lam=1e-3)
    size = (16, 32, 32)
    wave = (1, 4, 4)  # one that the kernel passes
    assert 0.3 < float(found.power(size)[wave] / known.power(size)[wave]) < 2  # 0.2 where it is spread


SAMPLES = Path(__file__).parents[2] / "sample_images"


def scene():
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
