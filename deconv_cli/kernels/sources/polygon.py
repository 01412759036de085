"""`polygon:BLADES@RADIUS@ANGLE`: a regular polygon, as of a lens out of focus whose diaphragm has straight blades."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from deconv_cli.errors import UsageError
from deconv_cli.kernels.sources.continuous_kernel import ContinuousKernel, check_length
from deconv_cli.kernels.sources.kernel_source import BlurFamily, KernelSource, Numbers

_MOST_BLADES = 12
_NO_WAVE = 1e-16
"""Square of a frequency that is zero but for rounding."""


def polygon_kernel(blades: float, radius: float, angle: float) -> ContinuousKernel:
    """Describe a centered regular polygon, its transform as an integral along its sides by the divergence theorem.

    Args:
        blades: how many sides, a whole number from 3 to 12.
        radius: from the center to a corner, in pixels.
        angle: of one corner, in degrees, counterclockwise from the horizontal as a point of the picture is seen.

    Raises:
        UsageError: not so many blades; or the radius is not positive, or too large.
    """
    if blades != round(blades) or not 3 <= blades <= _MOST_BLADES:
        raise UsageError(f"BLADES must be a whole number from 3 to {_MOST_BLADES}, but is {blades:g}.")
    check_length(radius, "RADIUS")
    half = math.pi / blades
    inner, side = radius * math.cos(half), 2 * radius * math.sin(half)
    area = blades * inner * side / 2
    normals = [math.radians(angle) + half * (2 * i + 1) for i in range(round(blades))]

    def transform(fy: torch.Tensor, fx: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(fy + fx, dtype=torch.complex128)
        for normal in normals:
            # Rows count downwards.
            across, along = fx * math.cos(normal) - fy * math.sin(normal), fx * math.sin(normal) + fy * math.cos(normal)
            total += torch.polar(across * torch.sinc(side * along), -2 * math.pi * inner * across)
        squares = fx.square() + fy.square()
        return torch.where(squares > _NO_WAVE, 1j * side / (2 * math.pi * area) * total / squares, 1.0)

    return ContinuousKernel((radius, radius), transform)


def _starts(best: Mapping[str, Numbers]) -> list[Numbers]:
    """Start near the disk of the same area; power does not tell a polygon from itself turned by half a turn."""
    radius = best["disk"][0]
    if radius < 1.5:
        return []
    starts: list[Numbers] = []
    for blades in (5, 6, 7, 8):
        corner = radius * math.sqrt(2 * math.pi / (blades * math.sin(2 * math.pi / blades)))
        starts += [(float(blades), corner, _period(blades) * i / 4) for i in range(4)]
    return starts


def _period(blades: float) -> float:
    return 180 / blades if blades % 2 else 360 / blades


POLYGON = KernelSource(
    ("BLADES", "RADIUS", "ANGLE"),
    polygon_kernel,
    BlurFamily(
        lambda _, best: _starts(best),
        lambda n: (0.0, 0.06, 90 / n[0]),
        log_penalty=7.5,
        period=lambda n: _period(n[0]),
    ),
    along=(None, -1, None),
    example="6@5.2@10",
)
