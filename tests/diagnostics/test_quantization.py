"""What a quantizer leaves of the coefficients of blocks, and the image that is found behind it."""

from __future__ import annotations

import math

import pytest
import torch

import deconv_cli
from deconv_cli.diagnostics.continuation import Continuation
from deconv_cli.diagnostics.image_model import ImageModel, fit_image_model
from deconv_cli.diagnostics.noise_spectrum import SpectrumBasis, fit_noise_spectrum
from deconv_cli.diagnostics.quantization import gain_in_blocks, part_left
from deconv_cli.kernels.kernel import Kernel

SIZE = (128, 128)
MOTION = deconv_cli.make_kernel("motion:11@0").double()


@pytest.mark.parametrize("step", [0.3, 1.5, 4.0, 8.0])
def test_a_quantizer_leaves_that_part_of_laplacian_coefficients(step):
    uniform = torch.rand(10**6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    drawn = -uniform.sign() * (1 - 2 * uniform.abs()).log()
    power = drawn.square().mean()
    found = (drawn * (drawn / step).round() * step).mean() / power
    assert float(part_left(step**2 / 12 / power)) == pytest.approx(float(found), abs=0.01)


@pytest.mark.parametrize("ratio", [0.0, 1e-12, 1e12])
def test_extremes_have_an_answer(ratio):
    assert float(part_left(torch.tensor(ratio, dtype=torch.float64))) == pytest.approx(float(ratio < 1), abs=1e-6)


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


def test_an_image_is_not_taken_to_be_smoother_than_it_is_for_what_was_rounded_to_zero():
    known = ImageModel.isotropic(1.2, torch.eye(1, dtype=torch.float64), SIZE)
    scene = 40 * known.draw(1, SIZE, 3, torch.float64)[0]
    y = rounded(deconv_cli.forward(scene, MOTION, boundary="circular"), step=8.0)
    kernel = Kernel.from_tensor(MOTION)
    noise = fit_noise_spectrum(y[None], SpectrumBasis.of(kernel.taps, SIZE), is_colored=True)
    continuation = Continuation(kernel, SIZE, boundary="circular", penalty="gradient", noise=noise)
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
