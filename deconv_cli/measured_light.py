"""Samples of measured light: smooth them, shift them, and separate them from their noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

N_SCALES, STANDS_OUT = 5, 5.0
"""Number of scales, and standard deviations above zero from which on a sample stands out."""


def smooth(image: Tensor, step: int = 1, beyond: str = "replicate") -> Tensor:
    """Smooth by (1, 4, 6, 4, 1)/16 along each axis, with taps `step` samples apart.

    Outside lie the edge samples, or nothing (`constant`); then the smoothing is its own adjoint.
    """
    taps = image.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    found = image
    for axis in range(image.ndim):
        lines = found.movedim(axis, -1)
        flat = lines.reshape(-1, 1, lines.shape[-1])
        wide = functional.pad(flat, (2 * step, 2 * step), mode=beyond)
        found = functional.conv1d(wide, taps[None, None], dilation=step).reshape(lines.shape).movedim(-1, axis)
    return found


def above_noise(light: Tensor, sigma: Tensor, n_scales: int = N_SCALES) -> Tensor:
    """Keep each sample at the finest scale at which it stands out of the noise, and set the others to zero.

    The scales are those of the transform "à trous" (Starck and Murtagh, Astronomical image and data analysis, 2006,
    section 2.2.3) of samples that do not stand out yet, so that a bright middle does not spread into its tails.

    Args:
        light: without its background, shape `(*n)`.
        sigma: standard deviation of each sample, of the same shape; `inf` for missing samples.
        n_scales: number of scales; the coarsest reaches over 2ⁿ samples.
    """
    is_open = sigma.isfinite()
    kept, variance, share = torch.zeros_like(light), sigma.square(), is_open.to(light.dtype)
    line = light.new_zeros(2**n_scales * 4 + 1)
    line[len(line) // 2] = 1
    for scale in range(n_scales):
        light, variance, share = (torch.where(is_open, each, 0.0) for each in (light, variance, share))
        noise = variance.sqrt() * float(line.square().sum()) ** (0.5 * light.ndim)
        stands_out = is_open & (light > STANDS_OUT * noise)
        kept[stands_out] = (light / share)[stands_out]
        is_open &= ~stands_out
        still = (torch.where(is_open, each, 0.0) for each in (light, variance, share))
        light, variance, share = (smooth(each, 2**scale, "constant") for each in still)
        line = smooth(line, 2**scale)
    return kept


def connected(light: Tensor) -> Tensor:
    """Set samples to zero that no path of samples above zero, diagonal steps included, connects to the middle."""
    is_light, pool = light > 0, (functional.max_pool2d, functional.max_pool3d)[light.ndim - 2]
    grown, n_before = torch.zeros_like(light), 0
    grown[tuple(n // 2 for n in light.shape)] = 1
    while n_before != (n_before := int(grown.sum())):
        grown = pool(grown[None, None], 3, stride=1, padding=1)[0, 0] * is_light
    return light * grown


def shift(windows: Tensor, by: Tensor) -> Tensor:
    """Move windows `(n, *size)` by parts of a pixel, `(n, n_axes)`, around the torus of the window."""
    size = windows.shape[1:]
    axes = tuple(range(-len(size), 0))
    phase = torch.zeros((), dtype=windows.dtype)
    for axis, n in zip(axes, size, strict=True):
        frequencies = torch.fft.fftfreq(n, dtype=windows.dtype).reshape(-1, *[1] * (-1 - axis))
        phase = phase + by[:, axis].reshape(-1, *[1] * len(size)) * frequencies
    moved = torch.fft.fftn(windows, dim=axes) * torch.polar(torch.ones_like(phase), -2 * math.pi * phase)
    return torch.fft.ifftn(moved, dim=axes).real
