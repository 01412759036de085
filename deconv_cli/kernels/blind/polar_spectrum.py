"""The power spectrum of a picture, averaged over its pieces and over cells of frequency and direction.

Welch, "The use of fast Fourier transform for the estimation of power spectra", IEEE Transactions on Audio and
Electroacoustics 15, 1967.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from deconv_cli.errors import ShapeError
from deconv_cli.operators.axes import join_neighbors

SIDES = (256, 128, 64)
"""Sides of the pieces, in pixels; a picture is cut into the largest of which it holds a few."""
LOWEST, HIGHEST = 0.012, 0.42
"""Cycles a pixel. Below, the window and the shading of the scene show; above, demosaicing and compression do."""
_N_ANGLES = 24
_CELLS_A_SIDE = 0.2
"""Rings, as a share of the side."""
_MOST_PIECES = 600
_RIM, _FADE = 14, 4
"""Pixels around a saturated one within which a piece is faded out, and half the width of each of three averages."""
_LEAST_AREA = 0.1
"""Of a piece, left by the fading."""
_BATCH = 8


@dataclass(frozen=True, eq=False)
class PolarGrid:
    """Cells of frequency and direction, of pieces of one size.

    Attributes:
        side: of the pieces, in pixels.
        cell: the cell of each frequency of `rfft2`, -1 for excluded ones, shape `(side, side // 2 + 1)`.
        counts: frequencies in each cell, shape `(n,)`.
        frequency: mean cycles a pixel in each cell, shape `(n,)`.
        direction: of the cell's middle, in radians from the horizontal axis of frequency, counterclockwise as the
            picture is seen, shape `(n,)`.
    """

    side: int
    cell: Tensor
    counts: Tensor
    frequency: Tensor
    direction: Tensor

    def average(self, power: Tensor) -> Tensor:
        """Average over the cells: shape `(*batch, side, side // 2 + 1)` to `(*batch, n)`."""
        is_in = self.cell >= 0
        flat = power[..., is_in]
        sums = flat.new_zeros(*flat.shape[:-1], len(self.counts)).index_add_(-1, self.cell[is_in], flat)
        return sums / self.counts

    def gain(self, taps: Tensor) -> Tensor:
        """Average |H|² of a kernel `(kH, kW)` over the cells, blurred as the Hann window blurs a spectrum: `(n,)`."""
        power = torch.fft.rfft2(taps, s=(self.side, self.side)).abs().square()
        # The Hann window spreads power over the neighbors of a frequency: 1/6, 2/3, 1/6 along each axis.
        power = power * (2 / 3) + (power.roll(1, 0) + power.roll(-1, 0)) / 6
        mirrored = torch.cat([power[:, 1:2], power, power[:, -2:-1]], 1)
        return self.average(power * (2 / 3) + (mirrored[:, :-2] + mirrored[:, 2:]) / 6)


@lru_cache
def polar_grid(side: int) -> PolarGrid:
    """Lay out the cells for pieces of a size."""
    fy = torch.fft.fftfreq(side, dtype=torch.float64)[:, None]
    fx = torch.fft.rfftfreq(side, dtype=torch.float64)[None, :]
    frequency, direction = torch.hypot(fy, fx), torch.atan2(-fy, fx.expand(side, -1))
    n_rings = round(_CELLS_A_SIDE * side)
    ring = ((frequency - LOWEST) * (n_rings / (HIGHEST - LOWEST))).floor().long()
    sector = (direction * (_N_ANGLES / math.pi)).round().long() % _N_ANGLES
    index = ring * _N_ANGLES + sector
    index[(ring < 0) | (ring >= n_rings)] = -1
    used, cell = index[index >= 0].unique(return_inverse=True)
    full = torch.full_like(index, -1)
    full[index >= 0] = cell
    counts = torch.bincount(cell).double()
    mean = torch.zeros_like(counts).index_add_(0, cell, frequency[index >= 0]) / counts
    return PolarGrid(side, full, counts, mean, (used % _N_ANGLES).double() * (math.pi / _N_ANGLES))


@dataclass(frozen=True, eq=False)
class PolarSpectrum:
    """The power of a picture by frequency and direction.

    Attributes:
        grid: the cells.
        power: mean power of white noise of variance 1 is 1, shape `(n,)`.
        n_pieces: number of averaged pieces; neighbors overlap by half.
        reliance: from 0 to 1, the part of each cell that the scene put there, shape `(n,)`.
    """

    grid: PolarGrid
    power: Tensor
    n_pieces: int
    reliance: Tensor


def side_for(size: tuple[int, int]) -> int:
    """Pick the side of the pieces for a picture.

    Raises:
        ShapeError: the picture is too small.
    """
    for side in SIDES:
        if min(size) >= side and size[0] * size[1] >= 2 * side * side:
            return side
    raise ShapeError(
        f"finding a blur needs a picture of at least {SIDES[-1]} × {2 * SIDES[-1]} pixels, but this one has {size[0]} "
        f"× {size[1]}; give a larger part of it."
    )


def measure_spectrum(light: Tensor, *, clipped: Tensor | None = None, side: int | None = None) -> PolarSpectrum:
    """Average the periodograms of a picture's overlapping pieces, each under a Hann window and without its mean.

    `light` and `clipped`, which marks saturated pixels, have the shape `(H, W)`. Saturated light does not follow the
    blur, and its outline is as sharp as if nothing had blurred it. So the window of a piece fades out around saturated
    pixels, and a piece of which little is left is skipped; if little is left of all, they are taken as they are. `side`
    is the side of the pieces in pixels.

    Raises:
        ShapeError: the picture is too small.
    """
    side = side or side_for((light.shape[0], light.shape[1]))
    grid = polar_grid(side)
    window = hann_window((side, side))
    window /= window.square().mean().sqrt()
    parts = [(slice(y, y + side), slice(x, x + side)) for y, x in _corners(light, side)]
    kept = None if clipped is None or not bool(clipped.any()) else _fade_out(clipped)
    if kept is not None:
        left = [part for part in parts if float((window * kept[part]).square().mean()) > _LEAST_AREA]
        parts, kept = (left, kept) if left else (parts, None)
    power, area = torch.zeros(side, side // 2 + 1, dtype=torch.float64), 0.0
    for start in range(0, len(parts), _BATCH):
        chosen = parts[start : start + _BATCH]
        pieces, weights = torch.stack([light[part] for part in chosen]).double(), window.expand(len(chosen), -1, -1)
        if kept is not None:
            weights = weights * torch.stack([kept[part] for part in chosen])
        means = (pieces * weights).sum((1, 2), keepdim=True) / weights.sum((1, 2), keepdim=True)
        # Not by abs(), which guards against overflow at ten times the cost.
        power += torch.view_as_real(torch.fft.rfft2((pieces - means) * weights)).square().sum((0, -1))
        area += float(weights.square().mean((1, 2)).sum())
    averaged = grid.average(power / (area * side * side))
    return PolarSpectrum(grid, averaged, max(1, round(area)), torch.ones_like(averaged))


def _fade_out(clipped: Tensor) -> Tensor:
    """Weigh pixels by 0 at saturated ones, shape `(H, W)`, rising smoothly to 1 some way off."""
    near = join_neighbors(clipped, (_RIM, _RIM), Tensor.bitwise_or_).float()
    n_neighbors = join_neighbors(torch.ones_like(near), (_FADE, _FADE), Tensor.add_)
    for _ in range(3):
        near = join_neighbors(near, (_FADE, _FADE), Tensor.add_).div_(n_neighbors)
    return 1 - near


def hann_window(size: Sequence[int]) -> Tensor:
    """Return 4 times the Hann window for a plane of this size, float64."""
    rows, columns = (1 - (torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)).cos() for n in size)
    return torch.outer(rows, columns)


def _corners(light: Tensor, side: int) -> list[tuple[int, int]]:
    """Place pieces that overlap by half, or fewer of them evenly over a large picture."""
    counts = [max(1, math.ceil(2 * (n - side) / side) + 1) for n in light.shape]
    shrink = max(1.0, math.sqrt(counts[0] * counts[1] / _MOST_PIECES))
    rows, columns = (
        torch.linspace(0, n - side, max(1, round(count / shrink))).long().tolist()
        for n, count in zip(light.shape, counts, strict=True)
    )
    return [(y, x) for y in rows for x in columns]


_LOST, _WHOLE = -1.5, -0.75
"""Logarithms to base 10 of power over squared divisor: below the first nothing is relied on, above the second all."""


def jpeg_reliance(stored: PolarSpectrum, table: Tensor) -> Tensor:
    """Estimate which part of each cell of a spectrum the scene put there, from 0 to 1, shape `(n,)`.

    A JPEG divides the coefficients of a cosine transform of 8 × 8 blocks by a table `(8, 8)`, the lowest frequency
    first, and rounds them. Where the power of the picture is far below the square of the divisor, only zeros and a few
    wrong ones remain (ISO/IEC 10918-1). The spectrum is that of the luma in code values from 0 to 255.
    """
    log_ratio = stored.power.clamp_min(1e-12).log10() - 2 * _log_divisors(stored.grid, table)
    return ((log_ratio - _LOST) / (_WHOLE - _LOST)).clamp(0, 1)


def _log_divisors(grid: PolarGrid, table: Tensor) -> Tensor:
    """Interpolate the table at each frequency: its coefficient k lies at k / 16 cycles a pixel."""
    side = grid.side
    fy = torch.fft.fftfreq(side, dtype=torch.float64).abs() * 32 / 7 - 1
    fx = torch.fft.rfftfreq(side, dtype=torch.float64) * 32 / 7 - 1
    at = torch.stack(torch.broadcast_tensors(fx[None, :], fy[:, None]), -1)
    logs = table.double().log10()[None, None]
    sampled = torch.nn.functional.grid_sample(
        logs, at[None], mode="bilinear", padding_mode="border", align_corners=True
    )
    return grid.average(sampled[0, 0])
