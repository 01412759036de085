"""Which frequencies of a JPEG still hold what the scene put there.

A JPEG divides the coefficients of a cosine transform of 8 × 8 blocks by a table and rounds them. Where the power of
the picture is far below the square of the divisor, nothing but zeros and a few wrong ones remain (ISO/IEC 10918-1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from deconv_cli.kernels.blind.polar_spectrum import PolarGrid, PolarSpectrum

_LOST, _WHOLE = -1.5, -0.75
"""Logarithms to base 10 of power over squared divisor: below the first nothing is relied on, above the second all."""


def jpeg_reliance(stored: PolarSpectrum, table: Tensor) -> Tensor:
    """Tell how far each cell of a spectrum can be relied on.

    Args:
        stored: spectrum of the luma as it is stored, in code values from 0 to 255.
        table: divisors of the luma's coefficients, row by row from the lowest frequency, shape `(8, 8)`.

    Returns:
        From 0 to 1, shape `(n,)`.
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
