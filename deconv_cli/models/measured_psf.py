"""Measured point-spread functions: what a picture of one may hold that is no part of it, and how to take that away."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deconv_cli.errors import UsageError

MIN_SIDE = 7
"""Taps a side from which on the outermost ones can be told from the function itself."""
FLAT = 0.35
"""Spread of the outermost taps, in parts of their median, up to which they are a background, and no tails."""
FAINT = 0.2
"""A background is at most this part of the peak."""
LEAST_SHARE = 0.02
"""A background is worth a note if it is this part of the sum of all taps."""
NOISE_LEVEL = 5.0
"""Standard deviations of a background below which a tap holds nothing but noise."""
FILLED = 0.7
"""Part of the taps, along both axes, up to which those that hold anything leave an empty margin."""
OFF_CENTER = 0.75
"""Pixels off the middle; the middle of an even number of taps is half a pixel off along each axis by itself."""
NEGATIVE = 0.05
"""Taps with negative ones of this part of the largest are a filter, and no measurement of light."""


def describe_flaws(taps: Tensor) -> tuple[str, ...]:
    """Find a background, an empty margin, and a center of mass off the middle; a sentence each.

    Args:
        taps: as `conv2d` applies them, shape `(kH, kW)`, or `(C, kH, kW)` for one kernel a channel.
    """
    planes = _planes(taps)
    if bool(planes.min() < -NEGATIVE * planes.max()):
        return ()
    flaws = []
    levels = [_background(plane)[0] for plane in planes]
    if any(levels):
        share = sum(level * plane.numel() for level, plane in zip(levels, planes, strict=True)) / float(planes.sum())
        flaws.append(
            f"the outermost taps of the kernel show a background, which makes {100 * share:.0f} % of its sum and takes "
            "contrast from the estimate; clean_kernel=True subtracts it"
        )
    signal = _signal(planes)
    top, bottom, left, right = _extent(signal)
    height, width = bottom - top, right - left
    if max(height / planes.shape[1], width / planes.shape[2]) <= FILLED:
        flaws.append(
            f"the kernel has an empty margin: {height}×{width} of its {planes.shape[1]}×{planes.shape[2]} taps hold "
            "anything, and the rest costs time and border; clean_kernel=True crops it"
        )
    distance = math.hypot(*(found - middle for found, middle in zip(_center(signal), _middle(signal), strict=True)))
    if distance > OFF_CENTER:
        flaws.append(
            f"the center of mass of the kernel lies {distance:.1f} pixels off its middle, and shifts the estimate "
            "against the data by as much; clean_kernel=True centers it"
        )
    return tuple(flaws)


def clean_psf(taps: Tensor) -> tuple[Tensor, str]:
    """Subtract the background of a measured point-spread function, crop its margin, and center it to a pixel.

    Kernels of several channels are cropped and centered together, so that shifts between them stay.

    Args:
        taps: as `conv2d` applies them, shape `(kH, kW)` or `(C, kH, kW)`.

    Returns:
        The taps in float64, an odd number along each axis, and a sentence on what was done.

    Raises:
        UsageError: there are other axes, or nothing stands out of the background.
    """
    if taps.ndim not in (2, 3):
        raise UsageError(
            f"clean_kernel=True is for measured point-spread functions of shape (kH, kW) or (C, kH, kW), but the "
            f"kernel has shape {tuple(taps.shape)}; leave it out."
        )
    planes = _planes(taps)
    signal = _signal(planes)
    if not bool(signal.any()):
        raise UsageError(
            "nothing of the kernel stands out of its background; take another picture, or do not clean it."
        )
    extent, center = _extent(signal), [round(place) for place in _center(signal)]
    # As far to both sides as the farther side needs, so that the center is the middle tap.
    reach = [max(center[axis] - extent[2 * axis], extent[2 * axis + 1] - 1 - center[axis]) for axis in (0, 1)]
    cleaned = torch.zeros(len(planes), 2 * reach[0] + 1, 2 * reach[1] + 1, dtype=torch.float64)
    top, bottom, left, right = extent
    row, column = top - center[0] + reach[0], left - center[1] + reach[1]
    cleaned[:, row : row + bottom - top, column : column + right - left] = signal[:, top:bottom, left:right]
    levels = ", ".join(f"{_background(plane)[0]:g}" for plane in planes)
    distance = math.hypot(*(place - middle for place, middle in zip(center, _middle(planes), strict=True)))
    note = (
        f"the kernel was cleaned: a background of {levels} was subtracted, its {planes.shape[1]}×{planes.shape[2]} "
        f"taps were cropped to {cleaned.shape[1]}×{cleaned.shape[2]}, and its center was moved by {distance:.1f} pixels"
    )
    return cleaned if taps.ndim == 3 else cleaned[0], note


def _planes(taps: Tensor) -> Tensor:
    return taps.double().reshape(-1, *taps.shape[-2:])


def _background(plane: Tensor) -> tuple[float, float]:
    """Estimate the background from the outermost taps: its level, 0 if there is none, and its standard deviation."""
    if min(plane.shape) < MIN_SIDE:
        return 0.0, 0.0
    ring = torch.cat([plane[0], plane[-1], plane[1:-1, 0], plane[1:-1, -1]])
    low, level, high = (float(value) for value in ring.quantile(ring.new_tensor([0.25, 0.5, 0.75])))
    is_flat = high - low <= FLAT * level and level <= FAINT * float(plane.max())
    if level <= 0 or not is_flat or level * plane.numel() < LEAST_SHARE * float(plane.sum()):
        return 0.0, 0.0
    return level, (high - low) / 1.349  # the quartiles of a normal distribution


def _signal(planes: Tensor) -> Tensor:
    """Take the background away, and what noise leaves of it."""
    signal = []
    for plane in planes:
        level, sigma = _background(plane)
        rest = plane - level
        signal.append(torch.where(rest > NOISE_LEVEL * sigma, rest, 0.0))
    return torch.stack(signal)


def _extent(signal: Tensor) -> tuple[int, int, int, int]:
    """Find the rows and columns that hold anything: first and behind the last, of each."""
    rows, columns = (signal.sum(dim=(0, axis)).nonzero().flatten() for axis in (2, 1))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _center(signal: Tensor) -> tuple[float, float]:
    """Find the center of mass of all channels, each with the same weight."""
    weight = (signal / signal.sum(dim=(1, 2), keepdim=True).clamp_min(1e-300)).mean(dim=0)
    places = [torch.arange(n, dtype=weight.dtype) for n in weight.shape]
    rows, columns = (float((weight.sum(dim=1 - axis) * places[axis]).sum() / weight.sum()) for axis in (0, 1))
    return rows, columns


def _middle(planes: Tensor) -> tuple[int, int]:
    """Give the tap that meets the output pixel under padding `same`."""
    return (planes.shape[1] - 1) // 2, (planes.shape[2] - 1) // 2
