"""`airy:RADIUS`: the diffraction of a round aperture.

Airy, "On the diffraction of an object-glass with circular aperture", Transactions of the Cambridge Philosophical
Society 5, 1835; its transform is that of Goodman, Introduction to Fourier optics, 1968, section 6.4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from deconv_cli.kernels.sources.continuous_kernel import ContinuousKernel, check_length
from deconv_cli.kernels.sources.kernel_source import BlurFamily, KernelSource, Numbers

_FIRST_ZERO = 3.8317059702075125
"""Of the Bessel function J₁."""
_N_RADII = 6
"""Beyond lie about 3 % of the light."""
_SIGMA_OF_RADIUS = 0.34
"""Of the Gaussian that comes nearest: σ = 0.42 λN, where the first zero lies at 1.22 λN."""


def airy_kernel(radius: float) -> ContinuousKernel:
    """Describe (2 J₁(v) / v)², up to six times the first zero.

    Args:
        radius: of the first dark ring, 1.22 λN, in pixels.

    Raises:
        UsageError: not positive, or too large.
    """
    reach = check_length(_N_RADII * radius, "RADIUS")
    finest = _FIRST_ZERO / (math.pi * radius)

    def profile(frequency: torch.Tensor) -> torch.Tensor:
        share = (frequency / finest).clamp(max=1)
        return 2 / math.pi * (share.acos() - share * (1 - share.square()).sqrt())

    return ContinuousKernel.radial(reach, profile)


def _starts(best: Mapping[str, Numbers]) -> list[Numbers]:
    radius = best["gaussian"][0] / _SIGMA_OF_RADIUS
    return [(radius * ratio,) for ratio in (0.7, 0.85, 1.0, 1.15)]


AIRY = KernelSource(
    ("RADIUS",),
    airy_kernel,
    BlurFamily(lambda _, best: _starts(best), lambda _: (0.15,), log_penalty=14.0),
    along=(-1,),
    example="3",
)
