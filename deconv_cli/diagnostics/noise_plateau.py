"""How strong the noise of the data is, told from the data alone: by the frequencies that hold nothing else."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from deconv_cli.diagnostics.picard import RAYLEIGH_MEDIAN, tapered
from deconv_cli.operators import synchronize
from deconv_cli.operators.circulant import to_float64

# Cells of the plane of frequencies, and coefficients that a cell must hold for its median to be trusted.
CELLS = 8
MIN_COEFFICIENTS = 48
# Cells of white noise alone have standard deviations that differ by less than this factor.
PLATEAU = 1.2
# Which part of the cells must agree on the floor.
MIN_PART = 0.06
# A floor above this part of the data's own standard deviation is taken for the picture itself.
MAX_FLOOR = 0.35


def noise_plateau(data: Tensor) -> float | None:
    """Estimate the standard deviation of white noise in blurred data.

    A blur takes most of the fine detail away, and white noise fills every frequency alike. So the plane of frequencies
    is cut into cells, each cell's level is estimated by its median, and the noise is where the lowest of them agree.

    Args:
        data: y, shape `(*batch, C, H, W)`.

    Returns:
        The estimate in the units of the samples, or `None` where the lowest cells differ (something else than white
        noise fills them), or are hardly below the picture itself.
    """
    wide = to_float64(data)
    sizes = torch.fft.rfft2(tapered(wide), norm="ortho").abs()
    height, width = sizes.shape[-2:]
    planes = sizes.flatten(end_dim=-3)
    n_cells = max(min(CELLS, int(math.sqrt(len(planes) * height * width / MIN_COEFFICIENTS))), 1)
    if n_cells < CELLS // 2:
        return None
    medians = torch.stack(
        [
            planes.index_select(-2, rows)[..., start:stop].median()
            for rows in _bands(height, n_cells, data.device)
            for start, stop in itertools.pairwise(width * step // n_cells for step in range(n_cells + 1))
        ]
    )
    levels = [level / RAYLEIGH_MEDIAN for level in sorted(synchronize.as_numbers(medians))]
    floor = [level for level in levels if level <= PLATEAU * levels[0]]
    spread = synchronize.as_number(wide.std())
    level = sum(floor) / len(floor)
    if level <= 0 or len(floor) < MIN_PART * len(levels) or level > MAX_FLOOR * spread:
        return None
    return level


def _bands(height: int, n_bands: int, device: torch.device) -> list[Tensor]:
    """Group the rows of a spectrum by the size of their frequency, slow ones first."""
    frequencies = [min(row, height - row) for row in range(height)]
    band_of = [min(2 * frequency * n_bands // height, n_bands - 1) for frequency in frequencies]
    return [
        torch.tensor([row for row in range(height) if band_of[row] == band], device=device) for band in range(n_bands)
    ]
