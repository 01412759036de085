"""How large the noise is, from the data alone."""

from __future__ import annotations

from torch import Tensor

from deconv_cli.errors import ShapeError
from deconv_cli.operators import host

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
    return host.as_number(detail.abs().flatten().median()) / (6 * _MEDIAN_OF_NORMAL)
