"""`box:SIZE`: a uniform square, by the area that it covers of each pixel."""

from __future__ import annotations

import torch

from deconv_cli.kernels.sources.kernel_source import KernelSource, pixels_reached, unit_sum


def box_kernel(size: float) -> torch.Tensor:
    """Cover each pixel with a centered square.

    Args:
        size: its side, in pixels; an even one covers half of the outermost pixels.

    Returns:
        Shape `(k, k)`, k odd, float64, sum 1.

    Raises:
        UsageError: not positive, or too large.
    """
    n = pixels_reached(size / 2, "SIZE")
    distances = torch.arange(-n, n + 1, dtype=torch.float64).abs()
    covered = (size / 2 + 0.5 - distances).clamp(max=1)
    return unit_sum(torch.outer(covered, covered))


BOX = KernelSource(("SIZE",), box_kernel, along=(-1,))
