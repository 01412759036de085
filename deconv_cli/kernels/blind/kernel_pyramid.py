"""A kernel from scale to scale: its sizes, resampled taps, and where they lie on their support."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_STEP = math.sqrt(2)
_LEAST_SIZE = 3


def pyramid(size: int) -> list[tuple[int, float]]:
    """List the scales for `size` taps a side, the coarsest first: taps a side there, and how many pixels are one."""
    scales = [(size, 1.0)]
    while scales[-1][0] > _LEAST_SIZE:
        factor = _STEP ** len(scales)
        taps = 2 * (math.ceil(size / factor) // 2) + 1
        scales.append((min(taps, scales[-1][0]), factor))
    return scales[::-1]


def resampled(taps: Tensor, size: int, ratio: float) -> Tensor:
    """Draw a kernel `ratio` times as large, about its middle.

    Args:
        taps: shape `(kH, kW)`.
        size: taps a side of the result, shape `(size, size)`, of sum 1.
        ratio: below 1 for a coarser scale.

    Returns:
        Uniform taps if nothing of the kernel falls on the support.
    """
    rows, columns = (_hats(n, size, ratio).to(taps) for n in taps.shape)
    return _unit_sum(rows @ taps @ columns.T)


def _hats(n_taps: int, size: int, ratio: float) -> Tensor:
    """Interpolate linearly, or average where the result is coarser: shape `(size, n_taps)`."""
    wanted = (torch.arange(size) - (size - 1) / 2) / ratio
    given = torch.arange(n_taps) - (n_taps - 1) / 2
    return (1 - (wanted[:, None] - given).abs() * min(1.0, ratio)).clamp_min(0)


def pruned(taps: Tensor, least: float) -> Tensor:
    """Drop the taps below a share of the largest."""
    return _unit_sum(torch.where(taps < least * taps.max(), 0, taps))


def boxed(taps: Tensor) -> Tensor:
    """Move taps, shape `(k, k)`, so that the box around those that are not zero lies in the middle of the support."""
    shifts = []
    for axis in (0, 1):
        used = torch.nonzero(taps.sum(1 - axis) > 0).flatten()
        shifts.append(int((len(taps) - 1 - used[0] - used[-1]) // 2))
    # The box fits, so that nothing wraps around.
    return taps.roll(shifts, (0, 1))


def balanced(taps: Tensor) -> Tensor:
    """Cut zeros off, or add them, so that the center of mass lies on the middle tap, to half a pixel.

    Args:
        taps: shape `(k, k)`, of sum 1.

    Returns:
        The same taps, on the smallest square of odd size that holds them.
    """
    used = torch.nonzero(taps)
    numbers = torch.arange(len(taps), dtype=taps.dtype)
    center = [round(float((taps.sum(1 - axis) * numbers).sum())) for axis in (0, 1)]
    reach = max(int((used[:, axis] - center[axis]).abs().max()) for axis in (0, 1))
    moved = taps.new_zeros(2 * reach + 1, 2 * reach + 1)
    moved[used[:, 0] - center[0] + reach, used[:, 1] - center[1] + reach] = taps[used[:, 0], used[:, 1]]
    return moved


def _unit_sum(taps: Tensor) -> Tensor:
    total = float(taps.sum())
    return taps / total if total > 0 else torch.full_like(taps, 1 / taps.numel())
