"""Beads aligned by parts of a pixel and averaged, and what their own size adds taken off.

Every bead is a·T(x − s) with a common template T; linearized, y ≈ a·T − Σ a·sₖ·∂ₖT, which is least squares for a and s.
Template and shifts are found in turn, as by Anderson and King, Toward high-precision astrometry with WFPC2, PASP 112,
2000, for the stars of a picture. Shifts by parts of a pixel are phases of the Fourier transform.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.measured_light import center_of_mass, shift, smooth
from deconv_cli.operators.axes import resized, space_axes, spread
from deconv_cli.operators.circulant import next_fast_size
from deconv_cli.vocabulary import Size

N_ROUNDS = 12
SETTLED = 1e-4
"""Rounds end when no shift changes by more pixels."""
OUTLIER = 4.0
"""Beads whose misfit is more than this multiple of the median misfit are dropped."""
LEAST_MISFIT = 0.03
"""Beads whose misfit is less than this part of their own light are always kept."""
LONGER, LEAST_LONGER = 6.0, 0.06
"""A bead is two that touch if length along a direction explains more of its residual than this multiple of the median,
and this part of its own light. In noisy fields of three PSFs, before the median of all beads was taken off, this found
493 of 814 pairs that the misfit misses, and took 3 of 9073 single beads for pairs."""
FINE = 8
"""Points a pixel at which profiles are read."""
N_STEPS, FITTED = 30, 1e-2
"""Steps of conjugate gradients at most; they end when the gradient is this part of the first one."""
SEEN = 0.05
"""Samples of a template are measured where at least this part of the beads' light, squared, shows them."""
NOISE_SHARE = 1e-3
"""Part of the square of the transform at zero below which a bead's transform is not divided by."""


@dataclass(frozen=True)
class BeadAverage:
    """The mean of aligned beads.

    Attributes:
        template: shape `(*size)`, of sum 1, its center on the middle sample.
        aligned: each bead alone, moved and scaled in the same way, shape `(n, *size)`.
        is_used: beads that look like the others, shape `(n,)`.
        shifts: from the middle sample of each window to its bead, shape `(n, n_axes)`.
        heights: light of each bead, in that of the template, shape `(n,)`.
    """

    template: Tensor
    aligned: Tensor
    is_used: Tensor
    shifts: Tensor
    heights: Tensor


def average_beads(windows: Tensor) -> BeadAverage:
    """Align and average windows `(n, *size)` without their background, odd, each around the sample next to a bead."""
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
        rest, heights = aligned.flatten(1).T - design @ fitted, fitted[0]
        alike = _look_alike(rest.square().sum(0), heights, template)
        single = alike & ~_look_double(rest, heights, design, slopes)
        is_used = single if bool(single.any()) else alike  # of two beads each may fail one test
        shifts = shifts + steps
        if float(steps[is_used].abs().max()) < SETTLED:
            break
    aligned = shift(windows, -shifts)
    mean = aligned[is_used].sum(0)
    offset = _center_of(mean)
    scales = aligned.flatten(1).sum(1)
    aligned = shift(aligned, -offset.expand(len(aligned), -1)) / scales.reshape(-1, *[1] * n_axes)
    template = _centered(mean)
    return BeadAverage(template / template.sum(), aligned, is_used, shifts + offset, fitted[0])


def _look_alike(rest: Tensor, heights: Tensor, template: Tensor) -> Tensor:
    """Decide which beads the template explains well: squares of their residuals, and factors, `(n,)`.

    Noise of counts leaves squares in proportion to the light.
    """
    misfit = rest / heights.clamp_min(1e-300)
    share = misfit / heights.clamp_min(1e-300) / template.square().sum()
    return (misfit <= OUTLIER * misfit.median()) | (share <= LEAST_MISFIT**2)


def _look_double(rest: Tensor, heights: Tensor, design: Tensor, slopes: Tensor) -> Tensor:
    """Find the beads that are longer than the template along a direction, as two that touch.

    Two points at ±s/2 are `2T + sᵀHs/4` to second order, with the second derivatives H of the template T. The residuals
    `(N, n)` are fit by H without its share in the design, `T` and the slopes `(n_axes, *size)`. The median over the
    beads is taken off, as pairs make the template itself longer: fewer than half of the beads may be pairs.
    """
    n_axes = len(slopes)
    pairs = list(itertools.combinations_with_replacement(range(n_axes), 2))
    curved = torch.stack([_slope(slopes[a], b - n_axes) for a, b in pairs]).flatten(1).T
    curved = curved - design @ torch.linalg.lstsq(design, curved).solution
    found = torch.linalg.lstsq(curved, rest).solution
    unexplained = rest.square().sum(0) - (curved @ found).square().sum(0)
    found = found - heights * (found / heights.clamp_min(1e-300)).quantile(0.5, dim=1, keepdim=True)
    explained = (curved @ found).square().sum(0)
    part = explained / unexplained.clamp_min(1e-300)
    share = explained / (heights.square() * design[:, 0].square().sum()).clamp_min(1e-300)
    lengths = rest.new_zeros(len(heights), n_axes, n_axes)
    for (a, b), value in zip(pairs, found, strict=True):
        lengths[:, b, a] = value if a == b else value / 2  # the lower triangle is read
    least, *_, most = torch.linalg.eigvalsh(lengths).T
    usual = part.median().clamp_min((len(pairs) - 2 / 3) / len(rest))  # of few beads, at least that of white noise
    return (part > LONGER * usual) & (share > LEAST_LONGER**2) & (most > -least)


def _slope(template: Tensor, axis: int) -> Tensor:
    n = template.shape[axis]
    frequencies = torch.fft.fftfreq(n, dtype=template.dtype).reshape(-1, *[1] * (-1 - axis))
    factor = torch.complex(torch.zeros_like(frequencies), 2 * math.pi * frequencies)
    return torch.fft.ifft(torch.fft.fft(template, dim=axis) * factor, dim=axis).real


def _center_of(template: Tensor) -> Tensor:
    """Find the distance of the center of mass above half of the maximum from the middle sample, shape `(n_axes,)`."""
    center = center_of_mass((template - 0.5 * template.max()).clamp_min(0))
    return center - center.new_tensor([n // 2 for n in template.shape])


def _centered(template: Tensor) -> Tensor:
    for _ in range(3):
        template = shift(template[None], -_center_of(template)[None])[0]
    return template


def fit_beads(
    image: Tensor, places: Tensor, heights: Tensor, weights: Tensor, size: Size, start: Tensor
) -> tuple[Tensor, Tensor]:
    """Fit the light around a bead to all of an image at once, so that beads may lie within each other's tails.

    The image `(*n)` without its background is `Σ a·T(x − s)`, linear in `T`: least squares by conjugate gradients
    (Björck, Numerical methods for least squares problems, 1996, algorithm 7.4.1), for beads of heights a `(n_beads,)`
    at the places s `(n_beads, n_axes)`, by parts of a sample. The weights `(*n)` are 0 for samples that are not looked
    at. Outside of the window of `start` `T` is smooth, and takes up little noise; tails are found there, so that no
    bead counts as a tail.

    Gives the template, of an odd `size`, its center on the middle sample, and the standard deviation of its samples,
    `inf` if unseen.
    """
    axes = space_axes(image.ndim)
    wide = tuple(next_fast_size(n + k - 1) for n, k in zip(image.shape, size, strict=True))
    frame, box = (tuple(slice(n) for n in each) for each in (image.shape, size))
    middle = torch.tensor([k // 2 for k in size])
    spectrum = _points(places - middle, heights, wide)
    is_near = near_places(middle[None], tuple(start.shape), size)

    def blurred(values: Tensor) -> Tensor:
        return smooth(smooth(values, 1, "constant"), 2, "constant")

    def gathered(values: Tensor, by: Tensor) -> Tensor:
        return torch.fft.irfftn(torch.fft.rfftn(values, wide, axes) * by.conj(), wide, axes)[box]

    def seen(template: Tensor) -> Tensor:
        return weights * torch.fft.irfftn(torch.fft.rfftn(template, wide, axes) * spectrum, wide, axes)[frame]

    def slope_of(values: Tensor) -> Tensor:
        slope = gathered(weights * values, spectrum)
        return torch.where(is_near, slope, blurred(slope))

    template = resized(start, size)
    rest = weights * image - seen(template)
    slope = way = slope_of(rest)
    first = power = slope.square().sum()
    for _ in range(N_STEPS):
        taken = torch.where(is_near, way, 0.0) + blurred(torch.where(is_near, 0.0, way))
        change = seen(taken)
        step = power / change.square().sum()
        template, rest = template + step * taken, rest - step * change
        slope, before = slope_of(rest), power
        power = slope.square().sum()
        if power <= FITTED**2 * first:
            break
        way = slope + power / before * way
    noise = (image.diff(dim=-1).abs().median() / (0.6745 * math.sqrt(2))).clamp_min(1e-300)
    coverage = gathered(weights, _points((places - middle).round(), heights.square(), wide))
    is_seen = coverage > SEEN * heights.square().sum()
    return template, torch.where(is_seen, noise * coverage.clamp_min(1e-300).rsqrt(), math.inf)


def near_places(places: Tensor, size: Size, image_size: Size) -> Tensor:
    """Mark the samples that lie within a window of a size around any of some places, shape `image_size`."""
    is_near = torch.zeros(image_size, dtype=torch.bool)
    for place in places:
        is_near[
            tuple(slice(max(int(p) - n // 2, 0), int(p) + n // 2 + 1) for p, n in zip(place, size, strict=True))
        ] = True
    return is_near


def _points(places: Tensor, heights: Tensor, size: Size) -> Tensor:
    """Give the half spectrum of points on a torus of a size."""
    total = torch.zeros(*size[:-1], size[-1] // 2 + 1, dtype=torch.complex128)
    lines = [torch.fft.fftfreq(n, dtype=places.dtype) for n in size[:-1]]
    lines.append(torch.fft.rfftfreq(size[-1], dtype=places.dtype))
    for place, height in zip(places, heights, strict=True):
        turns = spread([torch.exp(-2j * math.pi * at * line) for at, line in zip(place, lines, strict=True)])
        total += math.prod(turns, start=height)
    return total


def take_off_size(template: Tensor, diameter: float, spacing: tuple[float, ...]) -> Tensor:
    """Undo the blur of a template `(*size)` by the beads' own size: a ball, or its projection where there are two axes.

    Diameter and spacing are in one unit.
    """
    axes = space_axes(template.ndim)
    lines = [torch.fft.fftfreq(n, step, dtype=template.dtype) for n, step in zip(template.shape, spacing, strict=True)]
    square = sum((line.square() for line in spread(lines)), start=template.new_zeros(()))
    q = (math.pi * diameter * square.sqrt()).clamp_min(1e-4)
    ball = 3 * (q.sin() - q * q.cos()) / q**3
    divided = torch.fft.fftn(template, dim=axes) * ball / (ball.square() + NOISE_SHARE)
    found = torch.fft.ifftn(divided, dim=axes).real
    return found / found.sum()


def full_widths(windows: Tensor) -> Tensor:
    """Measure the full width at half maximum along lines through the middle of windows `(n, *size)`.

    It is in pixels, shape `(n, n_axes)`; NaN if a line does not fall to half.
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
