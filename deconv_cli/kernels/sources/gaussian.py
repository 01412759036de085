"""`gaussian:SIGMA`: a Gaussian, integrated over each pixel."""

from __future__ import annotations

import math

import torch

from deconv_cli.kernels.sources.kernel_source import BlurFamily, KernelSource, geometric, pixels_reached, unit_sum

_N_SIGMAS = 5
"""Beyond lie 6e-7 of the weight, a rounding error of float32."""


def gaussian_kernel(sigma: float) -> torch.Tensor:
    """Integrate the density exp(−(x² + y²) / 2σ²) / 2πσ² over each pixel.

    Args:
        sigma: standard deviation along each axis, in pixels.

    Returns:
        Shape `(k, k)`, k odd, float64, sum 1.

    Raises:
        UsageError: not positive, or too large.
    """
    line = gaussian_line(sigma, "SIGMA")
    return unit_sum(torch.outer(line, line))


def gaussian_line(sigma: float, name: str) -> torch.Tensor:
    """Integrate the density exp(−x² / 2σ²) / √(2π)σ over each pixel of a line.

    Args:
        sigma: standard deviation, in pixels.
        name: what it is called in the message.

    Returns:
        Shape `(k,)`, k odd, float64; the sum is 1 but for rounding and what lies beyond.

    Raises:
        UsageError: not positive, or too large.
    """
    n = pixels_reached(_N_SIGMAS * sigma, name)
    edges = (torch.arange(n + 1, dtype=torch.float64) + 0.5) / (sigma * math.sqrt(2))
    # The weight beyond an edge rather than within it keeps its digits far from the center.
    beyond = torch.special.erfc(edges) / 2
    half = beyond[:-1] - beyond[1:]
    return torch.cat([half.flip(0), 1 - 2 * beyond[:1], half])


GAUSSIAN = KernelSource(
    ("SIGMA",),
    gaussian_kernel,
    BlurFamily(lambda reach, _: [(s,) for s in geometric(0.5, reach / 3, 1.12)], lambda _: (0.12,), log_penalty=0.0),
    along=(-1,),
)
