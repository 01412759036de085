"""`polygon:BLADES@RADIUS@ANGLE`: a regular polygon, as of a lens out of focus whose diaphragm has straight blades."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from deconv_cli.errors import UsageError
from deconv_cli.kernels.sources.kernel_source import BlurFamily, KernelSource, Numbers, pixels_reached, unit_sum
from deconv_cli.kernels.sources.subpixels import integrate_over_pixels

_MOST_BLADES = 12
_SHARPNESS = 8.0
"""Edges fade over an eighth of a pixel, so that the taps change smoothly with the numbers."""


def polygon_kernel(blades: float, radius: float, angle: float) -> torch.Tensor:
    """Cover each pixel with a centered regular polygon.

    Args:
        blades: how many sides, a whole number from 3 to 12.
        radius: from the center to a corner, in pixels.
        angle: of one corner, in degrees, counterclockwise from the horizontal as the picture is seen.

    Returns:
        Shape `(k, k)`, k odd, float64, sum 1.

    Raises:
        UsageError: not so many blades; or the radius is not positive, or too large.
    """
    if blades != round(blades) or not 3 <= blades <= _MOST_BLADES:
        raise UsageError(f"BLADES must be a whole number from 3 to {_MOST_BLADES}, but is {blades:g}.")
    n = pixels_reached(radius, "RADIUS")
    sector = 2 * math.pi / blades
    middles = torch.arange(round(blades), dtype=torch.float64) * sector + sector / 2 + math.radians(angle)
    inner = radius * math.cos(sector / 2)

    def covered(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        inside = torch.full_like(x, math.inf)
        for middle in middles:
            # Rows count downwards.
            inside = torch.minimum(inside, inner - x * middle.cos() + y * middle.sin())
        return (0.5 + _SHARPNESS * inside).clamp(0, 1)

    return unit_sum(integrate_over_pixels(covered, n))


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
        log_penalty=10.0,
        period=lambda n: _period(n[0]),
    ),
    along=(None, -1, None),
)
