"""`disk:RADIUS`: a uniform disk, as of a lens out of focus."""

from __future__ import annotations

import math

import torch

from deconv_cli.kernels.sources.continuous_kernel import ContinuousKernel, check_length
from deconv_cli.kernels.sources.kernel_source import BlurFamily, KernelSource, geometric


def disk_kernel(radius: float) -> ContinuousKernel:
    """Describe a centered disk, of transform 2 J₁(v) / v with v = 2πrf.

    Args:
        radius: in pixels.

    Raises:
        UsageError: not positive, or too large.
    """

    def profile(frequency: torch.Tensor) -> torch.Tensor:
        v = (2 * math.pi * radius * frequency).clamp_min(1e-9)
        return 2 * torch.special.bessel_j1(v) / v

    return ContinuousKernel.radial(check_length(radius, "RADIUS"), profile)


DISK = KernelSource(
    ("RADIUS",),
    disk_kernel,
    BlurFamily(lambda reach, _: [(r,) for r in geometric(0.9, reach, 1.09)], lambda _: (0.09,), log_penalty=2.0),
    along=(-1,),
    example="5.2",
)
