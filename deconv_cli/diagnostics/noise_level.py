"""How large the noise is, from the data alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deconv_cli.diagnostics.spectral_data import SpectralData
from deconv_cli.errors import ShapeError
from deconv_cli.operators import synchronize

_FLOOR_SHARE = 0.1
"""The part of all components, those that the kernel passes least, from which the floor is read."""
_MEDIAN_OF_NORMAL = 0.6744897501960817
"""The median of |z| for a standard normal z."""


def estimate_noise(y: Tensor) -> float:
    """Estimate the standard deviation of white noise, from the finest detail of an image.

    The median of the absolute values of differences of second order, which edges change little (Donoho and Johnstone,
    "Ideal spatial adaptation by wavelet shrinkage", Biometrika 81, 1994, with the mask of Immerkær, "Fast noise
    variance estimation", Computer Vision and Image Understanding 64, 1996).

    Args:
        y: shape `(*batch, C, H, W)`, at least 3 × 3 pixels.

    Returns:
        In the units of the samples.

    Raises:
        ShapeError: the image is smaller.
    """
    if y.ndim < 2 or min(y.shape[-2:]) < 3:
        raise ShapeError(f"noise is estimated from images of at least 3×3 pixels, but the shape is {tuple(y.shape)}.")
    across = y[..., :-2] - 2 * y[..., 1:-1] + y[..., 2:]
    detail = across[..., :-2, :] - 2 * across[..., 1:-1, :] + across[..., 2:, :]
    # The squares of the mask's weights, 1 −2 1 in both directions, add up to 36.
    return synchronize.as_number(detail.abs().flatten().median()) / (6 * _MEDIAN_OF_NORMAL)


def noise_floor(data: SpectralData) -> float:
    """Estimate the standard deviation of white noise, from the components of the data that the kernel passes least.

    Args:
        data: power by frequency.

    Returns:
        In the units of the samples. Where the kernel passes everything well, it is an upper bound.
    """
    gain, power = data.gain.flatten(), data.power.flatten() / data.n_images
    n_kept = max(1, int(_FLOOR_SHARE * gain.numel()))
    weakest = torch.topk(gain, n_kept, largest=False).indices
    # Sums of squares of 2n normal numbers: their median is this part of their mean (Wilson and Hilferty, "The
    # distribution of chi-square", Proceedings of the National Academy of Sciences 17, 1931).
    median_of_mean = (1 - 1 / (9 * data.n_images)) ** 3
    return math.sqrt(synchronize.as_number(power[weakest].median()) / (median_of_mean * data.observed_share))
