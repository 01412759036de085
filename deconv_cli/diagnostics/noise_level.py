"""How large white noise is, from the data alone: three estimates, for three states of knowledge.

* `estimate_noise` knows nothing but the picture. It is for what must be known before any inverse is built: the weight
  of the total variation.
* `estimate_noise_of_spectrum` knows the kernel, and data that were continued onto a torus. It is for the choice of λ,
  and always gives a number.
* `estimate_noise_of_blurred` knows only that some blur was there. It is for tests of a residual, where the kernel
  itself is in doubt, and gives no number where there is none to trust.

A fourth, for the predicted error, is fitted together with the power of the image (`image_model.py`).
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from deconv_cli.diagnostics.hann_window import apply_hann_window
from deconv_cli.diagnostics.spectral_data import SpectralData
from deconv_cli.errors import ShapeError
from deconv_cli.operators import synchronize
from deconv_cli.operators.circulant import to_float64

_WEAK_SHARE = 0.1
"""The part of all components that counts as weak."""
_NORMAL_MEDIAN = 0.6744897501960817
"""The median of |z| for a standard normal z."""
_RAYLEIGH_MEDIAN = math.sqrt(math.log(2))
"""The median of |z| for a complex normal z of unit variance."""

# Cells of the plane of frequencies along either axis, and coefficients that a cell needs for its median to be trusted.
_N_CELLS = 8
_MIN_COEFFICIENTS = 48
# Cells of white noise alone have standard deviations that differ by less than this factor.
_AGREEMENT = 1.2
# Which part of the cells must agree on the lowest level.
_MIN_PART = 0.06
# A level above this part of the data's own standard deviation is taken for the picture itself.
_MAX_LEVEL = 0.35


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
    detail = y.diff(n=2, dim=-1).diff(n=2, dim=-2)
    # The squares of the mask's weights, 1 −2 1 in both directions, add up to 36.
    return synchronize.as_number(detail.abs().flatten().median()) / (6 * _NORMAL_MEDIAN)


def estimate_noise_of_spectrum(data: SpectralData) -> float:
    """Estimate the standard deviation of white noise, from the components of the data that the kernel passes least.

    Args:
        data: power by frequency.

    Returns:
        In the units of the samples. Where the kernel passes everything well, it is an upper bound.
    """
    gain, power = data.gain.flatten(), data.power.flatten() / data.n_images
    n_weak = max(1, int(_WEAK_SHARE * gain.numel()))
    weakest = torch.topk(gain, n_weak, largest=False).indices
    # Sums of squares of 2n normal numbers: their median is this part of their mean (Wilson and Hilferty, "The
    # distribution of chi-square", Proceedings of the National Academy of Sciences 17, 1931).
    median_of_mean = (1 - 1 / (9 * data.n_images)) ** 3
    return math.sqrt(synchronize.as_number(power[weakest].median()) / (median_of_mean * data.observed_share))


def estimate_noise_of_blurred(y: Tensor) -> float | None:
    """Estimate the standard deviation of white noise in blurred data.

    A blur takes most of the fine detail away, and white noise fills every frequency alike. So the plane of frequencies
    is cut into cells, each cell's level is estimated by its median, and the noise is where the lowest of them agree.

    Args:
        y: shape `(*batch, C, H, W)`.

    Returns:
        In the units of the samples, or `None` where the lowest cells differ (something else than white noise fills
        them), or are hardly below the picture itself.
    """
    wide = to_float64(y)
    sizes = torch.fft.rfft2(apply_hann_window(wide), norm="ortho").abs().flatten(end_dim=-3)
    n_planes, height, width = sizes.shape
    n_cells = min(_N_CELLS, int(math.sqrt(n_planes * height * width / _MIN_COEFFICIENTS)))
    if n_cells < _N_CELLS // 2:
        return None
    columns = [width * step // n_cells for step in range(n_cells + 1)]
    medians = torch.stack(
        [
            sizes.index_select(-2, rows)[..., start:stop].median()
            for rows in _rows_by_frequency(height, n_cells, y.device)
            for start, stop in itertools.pairwise(columns)
        ]
    )
    levels = [median / _RAYLEIGH_MEDIAN for median in sorted(synchronize.as_numbers(medians))]
    lowest = [level for level in levels if level <= _AGREEMENT * levels[0]]
    noise = sum(lowest) / len(lowest)
    is_the_picture = noise > _MAX_LEVEL * synchronize.as_number(wide.std())
    return None if noise <= 0 or len(lowest) < _MIN_PART * len(levels) or is_the_picture else noise


def _rows_by_frequency(height: int, n_bands: int, device: torch.device) -> list[Tensor]:
    """Group the rows of a spectrum by the size of their frequency, low ones first."""
    row = torch.arange(height, device=device)
    frequency = torch.minimum(row, height - row)
    band = (2 * frequency * n_bands // height).clamp_max(n_bands - 1)
    return [synchronize.places(band == k) for k in range(n_bands)]
