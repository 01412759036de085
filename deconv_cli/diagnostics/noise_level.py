"""How large the noise is, from the data alone.

* `estimate_noise` uses the picture alone. It is for the weight of the total variation, before any inverse is built.
* `estimate_noise_of_spectrum` uses the kernel, and data on a torus. It is for the choice of λ, and always gives a
  number.
* `estimate_noise_of_blurred` assumes some blur. It is for tests of a residual, where the kernel itself may be wrong,
  and gives no number if it finds none to trust.
* `estimate_gain` finds how many units of the samples one count of light is, if the noise is that of counts.

The noise for the predicted error is fitted together with the power of the image (`image_model.py`).
Noise that is not white is fitted in `noise_spectrum.py`; `workflows/noise_of_data.py` decides between them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deconv_cli.diagnostics.lambda_rules import SpectralData
from deconv_cli.diagnostics.spectra import FadedImages
from deconv_cli.errors import ShapeError
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import accumulation_dtype, space_axes
from deconv_cli.operators.circulant import to_float64
from deconv_cli.vocabulary import format_size

_WEAK_SHARE = 0.1
"""The part of all components that count as weak."""
NORMAL_MEDIAN = 0.6744897501960817
"""The median of |z| for a standard normal z."""
_RAYLEIGH_MEDIAN = math.sqrt(math.log(2))
"""The median of |z| for a complex normal z of unit variance."""

# Cells of frequencies along each axis, by the number of axes, and coefficients that a cell needs for its median to be
# trusted.
_N_CELLS = {1: 16, 2: 8, 3: 6}
_MIN_COEFFICIENTS = {1: 48, 2: 48, 3: 200}
# The last part of the frequencies of a signal too short for cells.
_FINEST = 8
# Cells of white noise alone have standard deviations that differ by less than this factor.
_AGREEMENT = 1.2
# The part of the cells that must agree on the lowest level.
_MIN_PART = 0.06
# A level above this part of the standard deviation of the data is the picture itself.
_MAX_LEVEL = 0.35

# Bins of brightness of the photon transfer, and the fewest blocks in one.
_N_BRIGHTNESS, _MIN_BLOCKS = 10, 50
# Deviations beyond this many standard deviations are edges, not noise.
_CLIP, _N_CLIPS = 3.0, 5
# The bins must span this factor of brightness.
_MIN_RANGE = 2.0
# The variance grows with this power of the mean: 1 for counts, 0 for noise that does not depend on brightness.
_MIN_POWER, _MAX_POWER = 0.6, 1.4

ENOUGH_SAMPLES, ENOUGH_PLANES = 2**20, 16
"""Samples whose median is within 0.2 % of that of all, and the least number of planes whose noise is that of all."""
GOLDEN = 0.618
"""What steps exceed a whole number by, so that they meet all phases of a pattern, as of blocks of a JPEG."""

LEAST_SIDE = 3
"""Pixels along each axis from which noise can be estimated."""


def estimate_noise(y: Tensor, n_axes: int = 2) -> float:
    """Estimate the standard deviation of white noise from the finest detail of images `(*batch, C, *size)`.

    It is the median of the absolute values of differences of second order, which edges change little (Donoho and
    Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika 81, 1994, with the mask of Immerkær, "Fast
    noise variance estimation", Computer Vision and Image Understanding 64, 1996), in the units of the samples.

    Raises:
        ShapeError: the image has fewer than three pixels along an axis of space.
    """
    if y.ndim < n_axes or min(y.shape[-n_axes:]) < LEAST_SIDE:
        least = format_size((LEAST_SIDE,) * n_axes)
        raise ShapeError(
            f"estimating the noise needs images of at least {least} pixels, but the shape is {tuple(y.shape)}."
        )
    first, *others = space_axes(n_axes)
    n = y.shape[first] - 2
    step = min(y.numel() // ENOUGH_SAMPLES, n // ENOUGH_PLANES)
    numbers = torch.arange(0, n, step + GOLDEN if step > 0 else 1, dtype=torch.float64).long().to(y.device)
    before, middle, after = (y.narrow(first, start, n).index_select(first, numbers) for start in range(3))
    detail = (after - middle) - (middle - before)
    for axis in others:
        detail = detail.diff(n=2, dim=axis)
    # The squares of the mask's weights, 1 −2 1 along each axis, add up to six for each.
    return synchronize.as_number(detail.abs().flatten().median()) / (6 ** (n_axes / 2) * NORMAL_MEDIAN)


def estimate_noise_of_spectrum(data: SpectralData) -> float:
    """Estimate the standard deviation of white noise from the components of the data that the kernel passes least.

    It is in the units of the samples, and an upper bound if the kernel passes everything well.
    """
    gain, power = data.gain.flatten(), data.power.flatten() / data.n_images
    n_weak = max(1, int(_WEAK_SHARE * gain.numel()))
    weakest = torch.topk(gain, n_weak, largest=False).indices
    # Sums of squares of 2n normal numbers: their median is this part of their mean (Wilson and Hilferty, "The
    # distribution of chi-square", Proceedings of the National Academy of Sciences 17, 1931).
    median_of_mean = (1 - 1 / (9 * data.n_images)) ** 3
    return math.sqrt(synchronize.as_number(power[weakest].median()) / (median_of_mean * data.observed_share))


def estimate_noise_of_blurred(faded: FadedImages) -> float | None:
    """Estimate the standard deviation of white noise in blurred data, in the units of the samples.

    A blur removes most of the fine detail, and white noise has the same power at every frequency. So the space of
    frequencies is cut into cells, the median gives the level of each cell, and the noise is the level of the lowest
    cells. `None` if they differ, because not only white noise fills them, or if they are hardly below the picture
    itself.
    """
    levels = _levels(faded)
    lowest = [level for level in levels if level <= _AGREEMENT * levels[0]]
    noise = sum(lowest) / max(len(lowest), 1)
    is_the_picture = noise > _MAX_LEVEL * synchronize.as_number(to_float64(faded.images).std(correction=0))
    return None if noise <= 0 or len(lowest) < _MIN_PART * len(levels) or is_the_picture else noise


def finest_level(faded: FadedImages) -> float:
    """Return the standard deviation of white noise that would fill the finest eighth of the frequencies of signals."""
    finest = faded.power[..., -max(faded.power.shape[-1] // _FINEST, 1) :]
    return math.sqrt(synchronize.as_number(finest.median())) / _RAYLEIGH_MEDIAN


def least_noise_level(faded: FadedImages) -> float | None:
    """Return the lowest level in any cell of frequencies: that of white noise, or less; `None` for tiny images."""
    return next(iter(_levels(faded)), None)


def _levels(faded: FadedImages) -> list[float]:
    """List the standard deviation of white noise that would fill each cell of frequencies, the lowest first."""
    n_axes, power = faded.n_axes, faded.power.flatten(0, 1)
    n_cells = min(_N_CELLS[n_axes], int((power.numel() / _MIN_COEFFICIENTS[n_axes]) ** (1 / n_axes)))
    if n_cells < _N_CELLS[n_axes] // 2:
        return []
    medians = synchronize.medians([cell for cell in _cells(power, n_cells) if cell.numel()])
    return [math.sqrt(median) / _RAYLEIGH_MEDIAN for median in sorted(medians)]


def _cells(power: Tensor, n_bands: int) -> list[Tensor]:
    """Cut a half spectrum `(n, *plane)` into bands of similar frequency along each axis."""
    *rows, last = power.shape[1:]
    cells = [power]
    for axis, length in enumerate(rows, start=1):
        bands = [min(2 * min(number, length - number) * n_bands // length, n_bands - 1) for number in range(length)]
        order = torch.tensor(sorted(range(length), key=bands.__getitem__), device=power.device)
        counts = [bands.count(band) for band in range(n_bands)]
        cells = [part for cell in cells for part in cell.index_select(axis, order).split(counts, axis)]
    bounds = [last * band // n_bands for band in range(n_bands + 1)]
    return [part for cell in cells for part in cell.tensor_split(bounds[1:-1], -1)]


def estimate_gain(y: Tensor, n_axes: int = 2) -> float | None:
    """Estimate the gain, in units a count, from the variance of the noise, if it grows in proportion to the mean.

    The photon transfer method (Janesick, Klaasen and Elliott, Charge-coupled-device charge-collection efficiency and
    the photon-transfer technique, Optical Engineering 26, 1987) on a single image `(*batch, C, *size)` of samples ≥ 0.
    A block of 2 × 2 samples, or of four in a line, gives a mean and a difference that cancels slopes. The variance of
    that difference is that of the noise where the image is smooth, as a blurred one is. `None` if it cannot be
    measured.
    """
    a, b, c, d = _blocks(y.to(accumulation_dtype(y)), n_axes)
    means, order = ((a + b + c + d) / 4).sort()
    squares = ((a - b - c + d) / 2)[order].square()
    n = len(means) // _N_BRIGHTNESS
    if n < _MIN_BLOCKS:
        return None
    mean = means[: n * _N_BRIGHTNESS].reshape(_N_BRIGHTNESS, n).mean(dim=1)
    variance = _clipped_variance(squares[: n * _N_BRIGHTNESS].reshape(_N_BRIGHTNESS, n))
    if not synchronize.holds_everywhere((mean > 0) & (variance > 0)):
        return None
    brightness, size = mean.log(), variance.log()
    if synchronize.as_number((brightness[-1] - brightness[0]).exp()) < _MIN_RANGE:
        return None
    around = brightness - brightness.mean()
    power = synchronize.as_number((around * (size - size.mean())).sum() / around.square().sum())
    if not _MIN_POWER <= power <= _MAX_POWER:
        return None
    return synchronize.as_number((variance / mean).median())


def _blocks(y: Tensor, n_axes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give the four samples of each block; a − b − c + d is zero on a slope."""
    if n_axes == 1:
        lines = y[..., : y.shape[-1] // 4 * 4].reshape(-1, 4)
        a, b, c, d = lines.unbind(-1)
        return a, b, c, d
    height, width = y.shape[-2] // 2 * 2, y.shape[-1] // 2 * 2
    y = y[..., :height, :width]
    a, b, c, d = (y[..., i::2, j::2].flatten() for i in (0, 1) for j in (0, 1))
    return a, b, c, d


def _clipped_variance(squares: Tensor) -> Tensor:
    """Average the squares of each row without its outliers."""
    variance = squares.mean(dim=1)
    for _ in range(_N_CLIPS):
        is_noise = squares <= _CLIP**2 * variance[:, None]
        variance = torch.where(is_noise, squares, 0).sum(dim=1) / is_noise.sum(dim=1)
    return variance
