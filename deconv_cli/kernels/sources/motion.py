"""`motion:LENGTH@ANGLE`: a uniform motion along a straight line."""

from __future__ import annotations

import math

import torch

from deconv_cli.kernels.sources.continuous_kernel import ContinuousKernel, check_length
from deconv_cli.kernels.sources.kernel_source import BlurFamily, KernelSource, Numbers, geometric


def motion_kernel(length: float, angle: float) -> ContinuousKernel:
    """Describe a centered line.

    Args:
        length: of the line, in pixels.
        angle: of the line, in degrees, counterclockwise from the horizontal as the picture is seen.

    Raises:
        UsageError: the length is not positive, or too large.
    """
    half = check_length(length / 2, "LENGTH")
    # Rows count downwards.
    down, right = -math.sin(math.radians(angle)), math.cos(math.radians(angle))
    reach = (abs(half * down), abs(half * right))
    return ContinuousKernel(reach, lambda fy, fx: torch.sinc(length * (fy * down + fx * right)))


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
    example="9@30",
)
