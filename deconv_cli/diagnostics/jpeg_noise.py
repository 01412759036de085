"""The error that JPEG left in a picture, from the picture alone.

JPEG rounds each frequency of each block of 8 × 8 to multiples of a step. The steps show in the transform of the blocks
(Fan and de Queiroz, Identification of bitmap compression history: JPEG detection and quantizer estimation, IEEE TIP
2003). Large steps remove most of the noise, so the noise that is left says little about the error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from deconv_cli.kernels.blind.blurred_picture import LUMA

BLOCK = 8
CHANNEL_ERRORS = (1.5, 1.0, 1.6)
"""Errors of red, green and blue in units of that of the luma: their steps are larger, and half of their samples are
kept. Measured on five photographs of scikit-image and scikit-learn at qualities of 80 to 95."""
BESIDE, BESIDE_GRAY = (1.2, 0.8, 1.3), 0.5
"""Errors in gray levels that the steps do not show: of colors that are shared by neighbors, of rounding, and of noise
that was removed. Measured on the same photographs at qualities of 98 and 100, with noise of 0.5 before."""
LARGEST_STEP = 64
MOST_BLOCKS, FEW_BLOCKS = 4096, 512
COARSE = [BLOCK * row + column for row in range(6) for column in range(6 - row)]
"""Places of coarse frequencies, in which most pictures have values other than zero."""
FEWEST = 30
"""Values other than zero that show a step."""
LEAST_SCORE = 0.7
FEWEST_STEPS = 5
"""Frequencies that must show a step before a picture counts as JPEG."""


def estimate_jpeg_noise(stored: Tensor) -> Tensor | None:
    """Estimate the standard deviation of what JPEG changed.

    Args:
        stored: stored values from 0 to 255, shape `(C, H, W)`, C 1 or 3; the blocks may begin anywhere.

    Returns:
        One value a channel, shape `(C,)`; `None` where no trace of JPEG is seen.
    """
    if stored.shape[0] not in (1, 3) or min(stored.shape[1:]) < 2 * BLOCK:
        return None
    luma = torch.einsum("c,chw->hw", stored.new_tensor(LUMA), stored) if stored.shape[0] > 1 else stored[0]
    found = _steps_from(luma, (0, 0), MOST_BLOCKS, range(BLOCK**2))
    if len(found) < FEWEST_STEPS:
        starts = ((row, column) for row in range(BLOCK) for column in range(BLOCK))
        first = next((s for s in starts if len(_steps_from(luma, s, FEW_BLOCKS, COARSE)) >= FEWEST_STEPS), None)
        found = [] if first is None else _steps_from(luma, first, MOST_BLOCKS, range(BLOCK**2))
    if len(found) < FEWEST_STEPS:
        return None
    error = sum(_rounding_error(column, step) for column, step in found)
    factors, beside = (CHANNEL_ERRORS, BESIDE) if stored.shape[0] > 1 else ((1.0,), (BESIDE_GRAY,))
    return torch.hypot(math.sqrt(error / BLOCK**2) * stored.new_tensor(factors), stored.new_tensor(beside))


def _steps_from(luma: Tensor, first: tuple[int, int], n_most: int, places: Iterable[int]) -> list[tuple[Tensor, float]]:
    """Find the frequencies that show a step if the first block begins at a pixel, each with its values and its step."""
    columns = _frequencies(luma, first, n_most).T
    return [(columns[at], step) for at in places if (step := _step_of(columns[at])) is not None]


def _frequencies(luma: Tensor, first: tuple[int, int], n_most: int) -> Tensor:
    """Transform blocks by the orthonormal cosine transform; shape `(n_blocks, 64)`."""
    luma = luma[first[0] :, first[1] :]
    rows, columns = (n // BLOCK for n in luma.shape)
    blocks = luma[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK).transpose(1, 2)
    blocks = blocks.reshape(-1, BLOCK, BLOCK)
    blocks = blocks[:: math.ceil(len(blocks) / n_most)] - 128
    n = torch.arange(BLOCK, dtype=luma.dtype, device=luma.device)
    cosines = torch.cos(math.pi / BLOCK * (n + 0.5) * n[:, None]) * math.sqrt(2 / BLOCK)
    cosines[0] /= math.sqrt(2)
    return (cosines @ blocks @ cosines.T).flatten(1)


def _step_of(values: Tensor) -> float | None:
    """Find the largest step that nearly all values of one frequency are multiples of."""
    steps = torch.arange(2, LARGEST_STEP + 1, dtype=values.dtype, device=values.device)
    beyond = values.abs() > steps[:, None] / 2
    score = (torch.cos(2 * math.pi * values / steps[:, None]) * beyond).sum(dim=1)
    n_beyond = beyond.sum(dim=1)
    fits = (n_beyond >= FEWEST) & (score > LEAST_SCORE * n_beyond)
    return float(steps[fits].max()) if bool(fits.any()) else None


def _rounding_error(values: Tensor, step: float) -> float:
    """Give the variance of what was rounded away, for values whose distribution falls exponentially."""
    half = step / 2
    share = float((values.abs() > half).double().mean())
    scale = half / -math.log(min(share, 0.99))
    kept = math.exp(-half / scale)
    within = 2 * scale**2 - kept * (half**2 + 2 * half * scale + 2 * scale**2)
    return within + share * step**2 / 12
