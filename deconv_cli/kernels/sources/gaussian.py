"""`gaussian:SIGMA`: a Gaussian."""

from __future__ import annotations

import math

import torch

from deconv_cli.kernels.sources.continuous_kernel import ContinuousKernel, check_length
from deconv_cli.kernels.sources.kernel_source import BlurFamily, KernelSource, geometric

_N_SIGMAS = 5
"""Beyond lie 6e-7 of the weight, a rounding error of float32."""


def gaussian_kernel(sigma: float) -> ContinuousKernel:
    """Describe the density exp(−(x² + y²) / 2σ²) / 2πσ².

    Args:
        sigma: standard deviation along each axis, in pixels.

    Raises:
        UsageError: not positive, or too large.
    """
    return ContinuousKernel.radial(gaussian_reach(sigma, "SIGMA"), lambda f: gaussian_transform(sigma, f))


def gaussian_reach(sigma: float, name: str) -> float:
    """Give how far a Gaussian reaches along an axis, in samples.

    Args:
        sigma: standard deviation, in samples.
        name: what it is called in the message.

    Raises:
        UsageError: not positive, or too large.
    """
    return check_length(_N_SIGMAS * sigma, name)


def gaussian_transform(sigma: float, frequency: torch.Tensor) -> torch.Tensor:
    """Give the transform of a Gaussian along an axis, at frequencies in cycles a sample."""
    return torch.exp(-2 * (math.pi * sigma * frequency).square())


GAUSSIAN = KernelSource(
    ("SIGMA",),
    gaussian_kernel,
    BlurFamily(lambda reach, _: [(s,) for s in geometric(0.5, reach / 3, 1.12)], lambda _: (0.12,), log_penalty=0.0),
    along=(-1,),
    example="1.5",
)
