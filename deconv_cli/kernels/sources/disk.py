"""`disk:RADIUS`: a uniform disk, as of a lens out of focus, by the exact area that it covers of each pixel."""

from __future__ import annotations

import torch

from deconv_cli.kernels.sources.kernel_source import BlurFamily, KernelSource, geometric, pixels_reached, unit_sum


def disk_kernel(radius: float) -> torch.Tensor:
    """Cover each pixel with a centered disk.

    Args:
        radius: in pixels.

    Returns:
        Shape `(k, k)`, k odd, float64, sum 1.

    Raises:
        UsageError: not positive, or too large.
    """
    n = pixels_reached(radius, "RADIUS")
    edges = torch.arange(-n - 0.5, n + 1, dtype=torch.float64)
    areas = _area_from_center(edges[:, None], edges[None, :], radius)
    return unit_sum(areas.diff(dim=0).diff(dim=1).clamp(min=0))


def _area_from_center(y: torch.Tensor, x: torch.Tensor, radius: float) -> torch.Tensor:
    """Give the area that the disk shares with the rectangle from the center to (x, y), signed as x·y is.

    Up to the abscissa a, where the circle is as high as y, the disk covers the full height; from a to x it ends on the
    circle. Differences along both axes give the area within each pixel.
    """
    width, height = x.abs().clamp(max=radius), y.abs().clamp(max=radius)
    a = torch.minimum((radius**2 - height**2).clamp(min=0).sqrt(), width)
    area = a * height + _area_under_circle(width, radius) - _area_under_circle(a, radius)
    return area * x.sign() * y.sign()


def _area_under_circle(x: torch.Tensor, radius: float) -> torch.Tensor:
    """Integrate √(r² − u²) from 0 to x."""
    return (x * (radius**2 - x**2).clamp(min=0).sqrt() + radius**2 * (x / radius).clamp(max=1).asin()) / 2


DISK = KernelSource(
    ("RADIUS",),
    disk_kernel,
    BlurFamily(lambda reach, _: [(r,) for r in geometric(0.9, reach, 1.09)], lambda _: (0.09,), log_penalty=2.0),
    along=(-1,),
)
