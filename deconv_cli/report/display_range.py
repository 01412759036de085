"""Which value is shown black, and which white."""

from __future__ import annotations

from torch import Tensor

N_SAMPLES = 2**20
"""Of a larger image every second, third, ... sample is looked at."""
CLIPPED = 0.001
"""The share of the samples beyond either end of the range."""


def display_range(*images: Tensor) -> tuple[float, float]:
    """Find the range that all but the most extreme thousandth of the finite samples lie in, for all images together.

    Args:
        images: of any shapes; samples that are not finite are left out.

    Returns:
        The values for black and white, in units of the samples; white is above black.
    """
    lows, highs = [], []
    for image in images:
        flat = image.flatten()
        flat = flat[:: max(len(flat) // N_SAMPLES, 1)].double()
        flat = flat[flat.isfinite()]
        if len(flat) == 0:
            continue
        # By order, since torch's quantiles are limited in size.
        ordered = flat.sort().values
        last = len(ordered) - 1
        lows.append(float(ordered[round(CLIPPED * last)]))
        highs.append(float(ordered[round((1 - CLIPPED) * last)]))
    low, high = min(lows, default=0.0), max(highs, default=0.0)
    return (low, high) if high > low else (low - 0.5, low + 0.5)
