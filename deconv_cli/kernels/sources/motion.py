"""`motion:LENGTH@ANGLE`: a uniform motion along a straight line, by the exact length of the line in each pixel."""

from __future__ import annotations

import math

import torch

from deconv_cli.kernels.sources.kernel_source import (
    BlurFamily,
    KernelSource,
    Numbers,
    geometric,
    pixels_reached,
    unit_sum,
)
from deconv_cli.kernels.sources.traced_line import trace_line


def motion_kernel(length: float, angle: float) -> torch.Tensor:
    """Measure a centered line in each pixel.

    Args:
        length: of the line, in pixels.
        angle: of the line, in degrees, counterclockwise from the horizontal as the picture is seen.

    Returns:
        Shape `(kH, kW)`, both odd, float64, sum 1.

    Raises:
        UsageError: the length is not positive, or too large.
    """
    half = length / 2
    pixels_reached(half, "LENGTH")
    # Rows count downwards.
    steps = (-math.sin(math.radians(angle)), math.cos(math.radians(angle)))
    reach = [pixels_reached(max(half * abs(step), 1e-9), "LENGTH") for step in steps]
    end = torch.tensor([half * step for step in steps], dtype=torch.float64)
    taps = torch.zeros(2 * reach[0] + 1, 2 * reach[1] + 1, dtype=torch.float64)
    trace_line(taps, torch.zeros_like(end), end, half)
    # The other half of the line.
    return unit_sum(taps + taps.flip((0, 1)))


def _starts(reach: float) -> list[Numbers]:
    lengths = geometric(3.0, 2 * reach, 1.15)
    return [(length, 180 * i / n) for length in lengths for n in [_n_angles(length)] for i in range(n)]


def _n_angles(length: float) -> int:
    """Count the angles that a line of this length tells apart by a pixel or two at its ends."""
    return min(max(round(length), 8), 36)


MOTION = KernelSource(
    ("LENGTH", "ANGLE"),
    motion_kernel,
    BlurFamily(lambda reach, _: _starts(reach), lambda n: (0.15, 180 / _n_angles(n[0])), log_penalty=15.0),
    along=(-1, None),
)
