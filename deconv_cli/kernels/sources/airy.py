"""`airy:RADIUS`: the diffraction of a round aperture.

Airy, "On the diffraction of an object-glass with circular aperture", Transactions of the Cambridge Philosophical
Society 5, 1835.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from deconv_cli.kernels.sources.kernel_source import BlurFamily, KernelSource, Numbers, pixels_reached, unit_sum
from deconv_cli.kernels.sources.subpixels import integrate_over_pixels

_FIRST_ZERO = 3.8317059702075125
"""Of the Bessel function J₁."""
_N_RADII = 6
"""Beyond lie about 3 % of the light."""
_SIGMA_OF_RADIUS = 0.34
"""Of the Gaussian that comes nearest: σ = 0.42 λN, where the first zero lies at 1.22 λN."""


def airy_kernel(radius: float) -> torch.Tensor:
    """Integrate (2 J₁(v) / v)² over each pixel, up to six times the first zero.

    Args:
        radius: of the first dark ring, 1.22 λN, in pixels.

    Returns:
        Shape `(k, k)`, k odd, float64, sum 1.

    Raises:
        UsageError: not positive, or too large.
    """
    n = pixels_reached(_N_RADII * radius, "RADIUS")

    def density(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        v = (torch.hypot(y, x) * (_FIRST_ZERO / radius)).clamp_min(1e-6)
        return (2 * torch.special.bessel_j1(v) / v).square()

    return unit_sum(integrate_over_pixels(density, n))


def _starts(best: Mapping[str, Numbers]) -> list[Numbers]:
    radius = best["gaussian"][0] / _SIGMA_OF_RADIUS
    return [(radius * ratio,) for ratio in (0.7, 0.85, 1.0, 1.15)]


AIRY = KernelSource(
    ("RADIUS",),
    airy_kernel,
    BlurFamily(lambda _, best: _starts(best), lambda _: (0.15,), log_penalty=14.0),
    along=(-1,),
)
