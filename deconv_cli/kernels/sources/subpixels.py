"""Integrate a density over the pixels of a kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch

_N_SUBPIXELS = 8
_MAX_POINTS = 2**19
"""Held at once, in a band of rows of pixels."""


def integrate_over_pixels(density: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], n: int) -> torch.Tensor:
    """Take the mean of a density over 8 × 8 points of each pixel.

    Args:
        density: takes ordinates (downwards) and abscissas in pixels from the center, both of one shape.
        n: pixels beside the central one on each side.

    Returns:
        Shape `(2n + 1, 2n + 1)`, float64.
    """
    count = (2 * n + 1) * _N_SUBPIXELS
    at = (torch.arange(count, dtype=torch.float64) + 0.5) / _N_SUBPIXELS - n - 0.5
    n_rows = max(_MAX_POINTS // (count * _N_SUBPIXELS), 1)
    bands = []
    for ordinates in at.split(n_rows * _N_SUBPIXELS):
        y, x = torch.meshgrid(ordinates, at, indexing="ij")
        bands.append(torch.nn.functional.avg_pool2d(density(y, x)[None], _N_SUBPIXELS)[0])
    return torch.cat(bands)
