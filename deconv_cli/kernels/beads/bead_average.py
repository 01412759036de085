"""Beads aligned by parts of a pixel and averaged, and what their own size adds taken off.

Every bead is a·T(x − s) with a common template T; linearized, y ≈ a·T − Σ a·sₖ·∂ₖT, which is least squares for a and s.
Template and shifts are found in turn, as by Anderson and King, Toward high-precision astrometry with WFPC2, PASP 112,
2000, for the stars of a picture. Shifts by parts of a pixel are phases of the Fourier transform.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators.axes import space_axes
from deconv_cli.vocabulary import Size

N_ROUNDS = 12
SETTLED = 1e-4
"""Pixels by which shifts still change at the end."""
OUTLIER = 4.0
"""Beads whose misfit is so many times that of the median are left out."""
LEAST_MISFIT = 0.03
"""And no bead is that differs by less than this part of itself."""
FINE = 8
"""Points a pixel at which profiles are read."""
NOISE_SHARE = 1e-3
"""Part of the square of the transform at zero below which a bead's transform is not divided by."""


@dataclass(frozen=True)
class BeadAverage:
    """The mean of aligned beads.

    Attributes:
        template: shape `(*size)`, of sum 1, its center on the middle sample.
        aligned: each bead by itself, moved and scaled likewise, shape `(n, *size)`.
        is_used: beads that look like the others, shape `(n,)`.
    """

    template: Tensor
    aligned: Tensor
    is_used: Tensor


def average_beads(windows: Tensor) -> BeadAverage:
    """Align and average windows around beads.

    Args:
        windows: without their background, shape `(n, *size)`, odd, each around the sample next to a bead's center.
    """
    n_axes = windows.ndim - 1
    axes = space_axes(n_axes)
    shifts = windows.new_zeros(len(windows), n_axes)
    is_used = torch.ones(len(windows), dtype=torch.bool)
    template = windows.sum(0) / windows.sum()
    for _ in range(N_ROUNDS):
        aligned = shift(windows, -shifts)
        template = _centered(aligned[is_used].sum(0))
        template = template / template.sum()
        slopes = torch.stack([_slope(template, axis) for axis in axes])
        design = torch.cat([template[None], slopes]).flatten(1).T
        fitted = torch.linalg.lstsq(design, aligned.flatten(1).T).solution
        steps = (-fitted[1:] / fitted[0].clamp_min(1e-300)).T.clamp(-0.5, 0.5)
        is_used = _look_alike((aligned.flatten(1).T - design @ fitted).square().sum(0), fitted[0], template)
        shifts = shifts + steps
        if float(steps[is_used].abs().max()) < SETTLED:
            break
    aligned = shift(windows, -shifts)
    mean = aligned[is_used].sum(0)
    offset = _center_of(mean)
    scales = aligned.flatten(1).sum(1)
    aligned = shift(aligned, -offset.expand(len(aligned), -1)) / scales.reshape(-1, *[1] * n_axes)
    template = _centered(mean)
    return BeadAverage(template / template.sum(), aligned, is_used)


def _look_alike(rest: Tensor, heights: Tensor, template: Tensor) -> Tensor:
    """Tell which beads the template explains as well as most: squares of what is left over, and factors, `(n,)`.

    Noise of counts leaves squares in proportion to the light.
    """
    misfit = rest / heights.clamp_min(1e-300)
    share = misfit / heights.clamp_min(1e-300) / template.square().sum()
    return (misfit <= OUTLIER * misfit.median()) | (share <= LEAST_MISFIT**2)


def shift(windows: Tensor, by: Tensor) -> Tensor:
    """Move windows `(n, *size)` by parts of a pixel, `(n, n_axes)`, around the torus of the window."""
    size = tuple(windows.shape[1:])
    axes = space_axes(len(size))
    phase = torch.zeros((), dtype=windows.dtype)
    for axis, n in zip(axes, size, strict=True):
        frequencies = torch.fft.fftfreq(n, dtype=windows.dtype).reshape(-1, *[1] * (-1 - axis))
        phase = phase + by[:, axis].reshape(-1, *[1] * len(size)) * frequencies
    moved = torch.fft.fftn(windows, dim=axes) * torch.polar(torch.ones_like(phase), -2 * math.pi * phase)
    return torch.fft.ifftn(moved, dim=axes).real


def _slope(template: Tensor, axis: int) -> Tensor:
    n = template.shape[axis]
    frequencies = torch.fft.fftfreq(n, dtype=template.dtype).reshape(-1, *[1] * (-1 - axis))
    factor = torch.complex(torch.zeros_like(frequencies), 2 * math.pi * frequencies)
    return torch.fft.ifft(torch.fft.fft(template, dim=axis) * factor, dim=axis).real


def _center_of(template: Tensor) -> Tensor:
    """Find how far the weight of what is above half of the maximum lies off the middle sample, shape `(n_axes,)`."""
    above = (template - 0.5 * template.max()).clamp_min(0)
    places = [torch.arange(n, dtype=template.dtype) - n // 2 for n in template.shape]
    others = [tuple(b for b in range(template.ndim) if b != a) for a in range(template.ndim)]
    sums = [(above.sum(others[a]) if others[a] else above) @ places[a] for a in range(template.ndim)]
    return torch.stack(sums) / above.sum()


def _centered(template: Tensor) -> Tensor:
    for _ in range(3):
        template = shift(template[None], -_center_of(template)[None])[0]
    return template


def take_off_size(template: Tensor, diameter: float, spacing: tuple[float, ...]) -> Tensor:
    """Undo the blur by the beads' own size: a ball, or its projection where there are two axes.

    Args:
        template: shape `(*size)`, its center on the middle sample.
        diameter: of the beads, in the unit of the spacing.
        spacing: of the samples along each axis.
    """
    axes = space_axes(template.ndim)
    square = torch.zeros((), dtype=template.dtype)
    for axis, n, step in zip(axes, template.shape, spacing, strict=True):
        square = square + torch.fft.fftfreq(n, step, dtype=template.dtype).reshape(-1, *[1] * (-1 - axis)).square()
    q = (math.pi * diameter * square.sqrt()).clamp_min(1e-4)
    ball = 3 * (q.sin() - q * q.cos()) / q**3
    divided = torch.fft.fftn(template, dim=axes) * ball / (ball.square() + NOISE_SHARE)
    found = torch.fft.ifftn(divided, dim=axes).real
    return found / found.sum()


def full_widths(windows: Tensor) -> Tensor:
    """Measure the full width at half maximum along lines through the middle of windows `(n, *size)`.

    Returns:
        In pixels, shape `(n, n_axes)`; NaN where a line does not fall to half.
    """
    size: Size = tuple(windows.shape[1:])
    found = []
    for axis in range(len(size)):
        index = tuple(slice(None) if a == axis else n // 2 for a, n in enumerate(size))
        found.append(torch.stack([_width(window[index]) for window in windows]))
    return torch.stack(found, 1)


def _width(line: Tensor) -> Tensor:
    n = len(line)
    spectrum = torch.fft.rfft(line)
    fine = torch.fft.irfft(spectrum, n * FINE) * FINE
    middle = int(fine.argmax())
    half = 0.5 * fine[middle]
    ends = []
    for step in (-1, 1):
        at = middle
        while 0 <= at + step < len(fine) and fine[at + step] > half:
            at += step
        if not 0 <= at + step < len(fine):
            return line.new_tensor(math.nan)
        inside, outside = fine[at], fine[at + step]
        ends.append(abs(at - middle) + (inside - half) / (inside - outside))
    return (ends[0] + ends[1]) / FINE
