"""`box:SIZE`: a uniform square."""

from __future__ import annotations

import torch

from deconv_cli.kernels.sources.continuous_kernel import ContinuousKernel, check_length
from deconv_cli.kernels.sources.kernel_source import KernelSource


def box_kernel(size: float) -> ContinuousKernel:
    """Describe a centered square.

    Args:
        size: its side, in pixels.

    Raises:
        UsageError: not positive, or too large.
    """
    half = check_length(size / 2, "SIZE")
    return ContinuousKernel((half, half), lambda fy, fx: torch.sinc(size * fy) * torch.sinc(size * fx))


BOX = KernelSource(("SIZE",), box_kernel, along=(-1,), example="3")
