"""How many units of the samples one count is worth, where the noise is that of counts."""

from __future__ import annotations

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import accumulation_dtype

N_BINS = 10
MIN_BLOCKS_PER_BIN = 50
# Deviations beyond this many standard deviations are edges, not noise.
CLIP = 3.0
N_CLIPS = 5
# The bins must span this range of brightness before anything can be said.
MIN_RANGE = 2.0
# The power of the mean that the variance grows with: 1 for counts, 0 for noise that does not depend on brightness.
MIN_POWER, MAX_POWER = 0.6, 1.4


def estimate_gain(y: Tensor, n_axes: int = 2) -> float | None:
    """Estimate the gain from how the variance of the noise grows with the mean, if it grows in proportion.

    The photon transfer method (Janesick, Klaasen and Elliott, Charge-coupled-device charge-collection efficiency and
    the photon-transfer technique, Optical Engineering 26, 1987) on a single image: blocks of 2 × 2 samples, or of four
    in a line, give a mean and a difference that slopes are not seen in, whose variance is that of the noise where the
    image is smooth, as a blurred one is.

    Args:
        y: samples ≥ 0, shape `(*batch, C, *size)`; the planes of a stack are a batch.
        n_axes: axes of space.

    Returns:
        Units a count; `None` if the noise is not that of counts, or if there is too little of it to measure.
    """
    a, b, c, d = _blocks(y.to(accumulation_dtype(y)), n_axes)
    means, order = ((a + b + c + d) / 4).sort()
    squares = ((a - b - c + d) / 2)[order].square()
    n = len(means) // N_BINS
    if n < MIN_BLOCKS_PER_BIN:
        return None
    mean = means[: n * N_BINS].reshape(N_BINS, n).mean(dim=1)
    variance = _clipped_variance(squares[: n * N_BINS].reshape(N_BINS, n))
    if not synchronize.holds_everywhere((mean > 0) & (variance > 0)):
        return None
    brightness, size = mean.log(), variance.log()
    if synchronize.as_number((brightness[-1] - brightness[0]).exp()) < MIN_RANGE:
        return None
    around = brightness - brightness.mean()
    power = synchronize.as_number((around * (size - size.mean())).sum() / around.square().sum())
    if not MIN_POWER <= power <= MAX_POWER:
        return None
    return synchronize.as_number((variance / mean).median())


def _blocks(y: Tensor, n_axes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give the samples of each block, of which a − b − c + d is zero where they rise evenly."""
    if n_axes == 1:
        lines = y[..., : y.shape[-1] // 4 * 4].reshape(-1, 4)
        a, b, c, d = lines.unbind(-1)
        return a, b, c, d
    height, width = y.shape[-2] // 2 * 2, y.shape[-1] // 2 * 2
    y = y[..., :height, :width]
    a, b, c, d = (y[..., i::2, j::2].flatten() for i in (0, 1) for j in (0, 1))
    return a, b, c, d


def _clipped_variance(squares: Tensor) -> Tensor:
    """Average the squares of each row but for its outliers."""
    variance = squares.mean(dim=1)
    for _ in range(N_CLIPS):
        is_noise = squares <= CLIP**2 * variance[:, None]
        variance = torch.where(is_noise, squares, 0).sum(dim=1) / is_noise.sum(dim=1)
    return variance
