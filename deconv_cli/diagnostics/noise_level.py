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

import math
from functools import lru_cache

import torch
from torch import Tensor

from deconv_cli.diagnostics.hann_window import FadedImages
from deconv_cli.diagnostics.spectral_data import SpectralData
from deconv_cli.errors import ShapeError
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import space_axes
from deconv_cli.operators.circulant import to_float64
from deconv_cli.vocabulary import format_size

_WEAK_SHARE = 0.1
"""The part of all components that counts as weak."""
NORMAL_MEDIAN = 0.6744897501960817
"""The median of |z| for a standard normal z."""
_RAYLEIGH_MEDIAN = math.sqrt(math.log(2))
"""The median of |z| for a complex normal z of unit variance."""

# Cells of frequencies along each axis, by the number of axes, and coefficients that a cell needs for its median to be
# trusted.
_N_CELLS = {1: 16, 2: 8, 3: 6}
_MIN_COEFFICIENTS = {1: 48, 2: 48, 3: 200}
# Cells of white noise alone have standard deviations that differ by less than this factor.
_AGREEMENT = 1.2
# Which part of the cells must agree on the lowest level.
_MIN_PART = 0.06
# A level above this part of the data's own standard deviation is taken for the picture itself.
_MAX_LEVEL = 0.35


def estimate_noise(y: Tensor, n_axes: int = 2) -> float:
    """Estimate the standard deviation of white noise, from the finest detail of an image.

    The median of the absolute values of differences of second order, which edges change little (Donoho and Johnstone,
    "Ideal spatial adaptation by wavelet shrinkage", Biometrika 81, 1994, with the mask of Immerkær, "Fast noise
    variance estimation", Computer Vision and Image Understanding 64, 1996).

    Args:
        y: shape `(*batch, C, *size)`, at least three pixels along each axis of space.
        n_axes: axes of space.

    Returns:
        In the units of the samples.

    Raises:
        ShapeError: the image is smaller.
    """
    if y.ndim < n_axes or min(y.shape[-n_axes:]) < 3:
        least = format_size((3,) * n_axes)
        raise ShapeError(
            f"the noise is estimated from images of at least {least} pixels, but the shape is {tuple(y.shape)}."
        )
    detail = y
    for axis in space_axes(n_axes):
        detail = detail.diff(n=2, dim=axis)
    # The squares of the mask's weights, 1 −2 1 along each axis, add up to six for each.
    return synchronize.as_number(detail.abs().flatten().median()) / (6 ** (n_axes / 2) * NORMAL_MEDIAN)


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


def estimate_noise_of_blurred(faded: FadedImages) -> float | None:
    """Estimate the standard deviation of white noise in blurred data.

    A blur takes most of the fine detail away, and white noise fills every frequency alike. So the space of frequencies
    is cut into cells, each cell's level is estimated by its median, and the noise is where the lowest of them agree.

    Args:
        faded: the data.

    Returns:
        In the units of the samples, or `None` where the lowest cells differ (something else than white noise fills
        them), or are hardly below the picture itself.
    """
    n_axes, power = faded.n_axes, faded.power.flatten(0, 1)
    spread = synchronize.as_number(to_float64(faded.images).std(correction=0))
    n_cells = min(_N_CELLS[n_axes], int((power.numel() / _MIN_COEFFICIENTS[n_axes]) ** (1 / n_axes)))
    if n_cells < _N_CELLS[n_axes] // 2:
        return None
    medians = synchronize.medians([cell for cell in _cells(power, n_cells) if cell.numel()])
    levels = [math.sqrt(median) / _RAYLEIGH_MEDIAN for median in sorted(medians)]
    lowest = [level for level in levels if level <= _AGREEMENT * levels[0]]
    noise = sum(lowest) / len(lowest)
    is_the_picture = noise > _MAX_LEVEL * spread
    return None if noise <= 0 or len(lowest) < _MIN_PART * len(levels) or is_the_picture else noise


def _cells(power: Tensor, n_bands: int) -> list[Tensor]:
    """Cut a half spectrum `(n, *plane)` into bands of like frequency along each axis."""
    *rows, last = power.shape[1:]
    cells = [power]
    for axis, length in enumerate(rows, start=1):
        order, counts = _rows_by_frequency(length, n_bands)
        numbers = torch.tensor(order, device=power.device)
        cells = [part for cell in cells for part in cell.index_select(axis, numbers).split(counts, axis)]
    bounds = [last * band // n_bands for band in range(n_bands + 1)]
    return [part for cell in cells for part in cell.tensor_split(bounds[1:-1], -1)]


@lru_cache(maxsize=64)
def _rows_by_frequency(length: int, n_bands: int) -> tuple[list[int], list[int]]:
    """Order the numbers of the frequencies along a whole axis by their band, low ones first; count each band's."""
    bands = [min(2 * min(number, length - number) * n_bands // length, n_bands - 1) for number in range(length)]
    return sorted(range(length), key=bands.__getitem__), [bands.count(band) for band in range(n_bands)]
