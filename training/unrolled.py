"""The second stage: the denoiser inside the restoration, trained for the result of its last step.

A whole restoration of a small patch is one training sample: the patch is blurred in light on a torus, stored with noise
and compressed as a camera does, and restored by the steps of `photo_prior`, whose levels and weights are trained as
well. The noise level given to the steps has the error of an estimate, and sometimes the kernel is wrong too.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from deconv_cli.solvers.denoiser import Denoiser, local_mean
from deconv_cli.solvers.photo_prior import DARK, FIRST_ALONE, LEAST_DARK, first_pixel
from training.degrade import blur_gain, gaussian_gain

MARGIN = 10
"""Pixels at the edge of a patch that do not count: the torus joins what does not belong together there."""
START, TRUST = 20.0, 0.1
EVEN = 0.55
"""Part of white noise that the steps get as their level; `deconv_cli.workflows.estimators` gives 0.45."""


@dataclass(frozen=True)
class Sample:
    """A batch of blurred patches: data and truth in light, σ of the noise of each color, the transforms of the kernels.

    Saturated samples of the data are lower bounds.
    """

    data: Tensor
    truth: Tensor
    sigma: Tensor
    gain: Tensor
    is_stored: Tensor
    is_saturated: Tensor


class Restoration(nn.Module):
    """The steps of the prior with a denoiser, on a torus.

    Args:
        denoiser: to be trained.
        n_steps: of the splitting.
    """

    def __init__(self, denoiser: Denoiser, n_steps: int) -> None:
        super().__init__()
        self.denoiser = denoiser
        with torch.no_grad():  # the first stage has not seen the second level
            denoiser.head.weight[:, -1] = 0
        levels = START ** (1 - torch.arange(n_steps) / (n_steps - 1))
        self.log_levels = nn.Parameter(levels.log())
        self.log_weights = nn.Parameter((TRUST / levels.square()).log())

    def forward(self, sample: Sample) -> Tensor:
        """Restore; the estimate in light, of the shape of the data."""
        data, gain = sample.data, sample.gain
        z = data
        steps = zip(self.log_levels.exp(), self.log_weights.exp(), strict=True)
        for n, (level, weight) in enumerate(steps):
            blurred = torch.fft.irfft2(gain * torch.fft.rfft2(z), s=z.shape[-2:])
            misfit = data - blurred
            misfit = torch.where(sample.is_saturated, misfit.clamp(min=0), misfit)
            step = gain / (gain.square() + weight) * torch.fft.rfft2(misfit)
            x = z + torch.fft.irfft2(step, s=z.shape[-2:])
            z = self._denoise(x, level * _rms(sample.sigma), misfit, n)
            if n + 1 >= FIRST_ALONE:
                z = self._denoise_dark_colors(z, x, level, sample.sigma, misfit, n)
        return z

    def _denoise(self, x: Tensor, noise: Tensor, misfit: Tensor, step: int) -> Tensor:
        far = (local_mean(misfit.square().mean(dim=1, keepdim=True)) + 1e-12).sqrt()
        places = first_pixel(step)
        x, levels = (torch.roll(part, places, dims=(-2, -1)) for part in (x, torch.cat([noise, far], dim=1)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = self.denoiser(x, levels)
        return torch.roll(z, (-places[0], -places[1]), dims=(-2, -1))

    def _denoise_dark_colors(
        self, z: Tensor, x: Tensor, level: Tensor, sigma: Tensor, misfit: Tensor, step: int
    ) -> Tensor:
        """Denoise a color alone where its noise is far below that of the others, as in use."""
        part = (sigma / _rms(sigma)).square()
        is_alone = (part < DARK).float().mean(dim=(-2, -1)) >= LEAST_DARK
        if not is_alone.any():
            return z
        colors = [color[is_alone][:, None] for color in (x, sigma, misfit)]
        alone = self._denoise(colors[0].expand(-1, x.shape[1], -1, -1), level * colors[1], colors[2], step)
        share = (1 - part[is_alone]).clamp(min=0)
        mixed = z.clone()
        mixed[is_alone] = torch.lerp(z[is_alone], alone.mean(dim=1).to(z.dtype), share)
        return mixed


def _rms(sigma: Tensor) -> Tensor:
    """Return the level of the three colors together."""
    return sigma.square().mean(dim=1, keepdim=True).sqrt()


def loss_of(estimate: Tensor, sample: Sample) -> Tensor:
    """Logarithm of the mean squared error, so that each sample counts by its decibels; of stored values for those."""
    inner = (..., slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    estimate, truth = (light[inner].clamp(max=1) for light in (estimate, sample.truth))
    error = torch.where(sample.is_stored, to_stored(estimate) - to_stored(truth), estimate - truth)
    return (error.square().mean(dim=(1, 2, 3)) + 1e-6).log().mean()


def draw_sample(stored: Tensor, rng: np.random.Generator) -> Sample:
    """Blur and store patches of stored values in 0..1, shape `(B, 3, side, side)`."""
    parts = [_drawn(patch, rng) for patch in stored]
    return Sample(*(torch.stack(column) for column in zip(*parts, strict=True)))


def _drawn(stored: Tensor, rng: np.random.Generator) -> tuple[Tensor, ...]:
    truth = to_light(stored) * (rng.uniform(0.4, 1.0) if rng.random() < 0.85 else rng.uniform(1.0, 2.0))
    gain = blur_gain(stored.shape, rng, largest=8.0)
    if rng.random() < 0.25:
        gain = gain * blur_gain(stored.shape, rng, largest=2.5)
    blurred = torch.fft.irfft2(torch.fft.rfft2(truth) * gain, s=truth.shape[-2:])
    white = torch.from_numpy(rng.standard_normal(tuple(truth.shape), dtype=np.float32))
    is_gray = bool((stored[0] == stored[1]).all())
    white = white[:1].expand_as(white) if is_gray else white
    is_stored = rng.random() < 0.6
    if is_stored:
        noisy = to_stored(blurred) + math.exp(rng.uniform(math.log(0.3), math.log(4))) / 255 * white
        noisy = _as_file(noisy, rng, is_gray=is_gray)
        data, local = to_light(noisy), (noisy + 0.02).clamp(0.02, 1) ** 1.2
    else:
        data = (blurred + math.exp(rng.uniform(math.log(0.001), math.log(0.05))) * white).clamp(max=1)
        local = torch.ones_like(data)
    is_saturated = data > 0.999
    error = (data - blurred).square() * ~is_saturated
    real = (error.sum() / (~is_saturated).sum().clamp(min=1)).sqrt() + 1e-4
    told = real * math.exp(rng.uniform(-0.6, 0.3)) if is_stored else EVEN * real * math.exp(rng.uniform(-0.15, 0.15))
    variance = local_mean(local.square()[None])[0]
    sigma = (variance / variance.mean()).sqrt() * told
    if rng.random() < 0.3:  # a kernel that was estimated, a little too wide
        gain = gain * gaussian_gain(stored.shape, rng.uniform(0.1, 0.4))
    return data, truth, sigma, gain[None].expand(3, -1, -1), torch.tensor(is_stored)[None, None, None], is_saturated


def _as_file(stored: Tensor, rng: np.random.Generator, *, is_gray: bool) -> Tensor:
    """Round to 8 bits, and mostly compress as JPEG."""
    values = (stored * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    if rng.random() < 0.85:
        file = io.BytesIO()
        picture = Image.fromarray(values[..., 0] if is_gray else values)
        picture.save(file, "JPEG", quality=int(rng.integers(72, 98)), subsampling=int(rng.choice([0, 2], p=[0.2, 0.8])))
        values = np.array(Image.open(file).convert("RGB"))
    return torch.from_numpy(values).permute(2, 0, 1).float() / 255


def to_light(stored: Tensor) -> Tensor:
    """Undo the curve of sRGB; the mirror image below zero."""
    size = stored.abs()
    light = torch.where(size <= 0.04045, size / 12.92, ((size + 0.055) / 1.055) ** 2.4)
    return light * stored.sign()


def to_stored(light: Tensor) -> Tensor:
    """Do the curve of sRGB; the mirror image below zero."""
    size = light.abs()
    stored = torch.where(size <= 0.0031308, size * 12.92, 1.055 * size.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)
    return stored * light.sign()
