"""Sample a finely sampled kernel at pixels around any center, without aliasing.

The samples of a kernel whose transform is F have the transform Σ F(f + k) over whole numbers k. A low-pass filter in
front of the sampling, a sinc in a window of Kaiser ("Nonrecursive digital filter design using the I0-sinh window
function", IEEE International Symposium on Circuits and Systems, 1974), is 1 up to half of Nyquist's frequency and 0
from where frequencies would be folded into that range. It has negative lobes, so that edges ring.
"""

from __future__ import annotations

import math

import torch

FINENESS = 16
"""Fine samples a pixel along each axis, at which pixels as fine as that bring in an error below 1e-3."""
_HALF_WIDTH = 4.0
_BETA = 6.0
"""Of the window: the filter is within 4e-4 of 1 or 0 outside of its transition."""


def sample_band_limited(fine: torch.Tensor, n_times: int, center: tuple[float, ...]) -> torch.Tensor:
    """Sample a kernel so that its transform is right to 1e-3 up to half of Nyquist's frequency.

    Args:
        fine: shape `(*k)`, odd, centered, sampled `n_times` a pixel.
        n_times: fine samples a pixel along each axis.
        center: where its center lies from the middle tap of the result, in pixels along each axis.

    Returns:
        Shape `(*size)`, odd, float64, of sum 1.
    """
    taps = fine
    for axis, moved in enumerate(center):
        n_fine = fine.shape[axis] // 2
        n = math.ceil(n_fine / n_times + _HALF_WIDTH + abs(moved))
        places = torch.arange(-n, n + 1, dtype=torch.float64) - moved
        at = torch.arange(-n_fine, n_fine + 1, dtype=torch.float64) / n_times
        taps = torch.tensordot(_low_pass(places[:, None] - at), taps, dims=([1], [axis])).movedim(0, axis)
    return taps / taps.sum()


def _low_pass(distance: torch.Tensor) -> torch.Tensor:
    """Give the windowed sinc at distances in pixels."""
    inside = (1 - (distance / _HALF_WIDTH).square()).clamp_min(0)
    window = torch.special.i0(_BETA * inside.sqrt()) / torch.special.i0(torch.tensor(_BETA, dtype=torch.float64))
    return torch.where(inside > 0, torch.sinc(distance) * window, 0.0)
