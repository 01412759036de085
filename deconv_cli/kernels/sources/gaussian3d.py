"""`gaussian3d:DEPTH@SIGMA`: a Gaussian of three axes, integrated over each sample, another along the depth."""

from __future__ import annotations

import torch

from deconv_cli.kernels.sources.gaussian import gaussian_line
from deconv_cli.kernels.sources.kernel_source import KernelSource, unit_sum


def gaussian3d_kernel(depth: float, sigma: float) -> torch.Tensor:
    """Integrate the density ∝ exp(−z²/2σz² − (x² + y²)/2σ²) over each sample.

    Args:
        depth: standard deviation along the first axis, in planes.
        sigma: standard deviation along rows and columns, in pixels.

    Returns:
        Shape `(kD, k, k)`, both odd, float64, sum 1.

    Raises:
        UsageError: not positive, or too large.
    """
    plane = gaussian_line(sigma, "SIGMA")
    return unit_sum(torch.einsum("i,j,k->ijk", gaussian_line(depth, "DEPTH"), plane, plane))


GAUSSIAN3D = KernelSource(("DEPTH", "SIGMA"), gaussian3d_kernel, along=(-3, -1))
