"""`gaussian3d:DEPTH@SIGMA`: a Gaussian of three axes, another along the depth."""

from __future__ import annotations

import torch

from deconv_cli.kernels.sources.continuous_kernel import ContinuousKernel
from deconv_cli.kernels.sources.gaussian import gaussian_reach, gaussian_transform
from deconv_cli.kernels.sources.kernel_source import KernelSource


def gaussian3d_kernel(depth: float, sigma: float) -> ContinuousKernel:
    """Describe the density ∝ exp(−z²/2σz² − (x² + y²)/2σ²).

    Args:
        depth: standard deviation along the first axis, in planes.
        sigma: standard deviation along rows and columns, in pixels.

    Raises:
        UsageError: not positive, or too large.
    """
    side = gaussian_reach(sigma, "SIGMA")

    def transform(fz: torch.Tensor, fy: torch.Tensor, fx: torch.Tensor) -> torch.Tensor:
        return gaussian_transform(depth, fz) * gaussian_transform(sigma, fy) * gaussian_transform(sigma, fx)

    return ContinuousKernel((gaussian_reach(depth, "DEPTH"), side, side), transform)


GAUSSIAN3D = KernelSource(("DEPTH", "SIGMA"), gaussian3d_kernel, along=(-3, -1), example="3@1.5")
