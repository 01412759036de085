"""How strong the noise of the data is, told from the data alone: by the frequencies that hold nothing else."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deconv_cli.diagnostics.picard import RAYLEIGH_MEDIAN, tapered
from deconv_cli.operators import host

# Cells of the plane of frequencies, and coefficients that a cell must hold for its median to be trusted.
CELLS = 8
MIN_COEFFICIENTS = 48
# Cells of white noise alone have standard deviations that differ by less than this factor.
PLATEAU = 1.2
# Which part of the cells must agree on the floor.
MIN_PART = 0.06
# A floor above this part of the data's own standard deviation is taken for the picture itself.
MAX_FLOOR = 0.35


def estimate_noise(data: Tensor) -> float | None:
    """Estimate the standard deviation of white noise in blurred data.

    A blur takes most of the fine detail away, and white noise fills every frequency alike. So the plane of frequencies
    is cut into cells, each cell's level is estimated by its median, and the noise is where the lowest of them agree.

    Args:
        data: y, shape `(*batch, C, H, W)`.

    Returns:
        The estimate in the units of the samples, or `None` where the lowest cells differ (something else than white
        noise fills them), or are hardly below the picture itself.
    """
    sizes = torch.fft.rfft2(tapered(data.double() if data.device.type != "mps" else data), norm="ortho").abs()
    height, width = sizes.shape[-2:]
    planes = sizes.flatten(end_dim=-3)
    n_cells = max(min(CELLS, int(math.sqrt(len(planes) * height * width / MIN_COEFFICIENTS))), 1)
    if n_cells < CELLS // 2:
        return None
    # From 0 at the middle row of the shifted plane outwards, so that a cell holds frequencies of one size.
    rows = (torch.fft.fftfreq(height, device=data.device).abs() * 2 * n_cells).long().clamp_max(n_cells - 1)
    columns = (torch.arange(width, device=data.device) * n_cells // width).clamp_max(n_cells - 1)
    cell = rows[:, None] * n_cells + columns
    medians = torch.stack([planes[:, cell == index].median() for index in range(n_cells**2)])
    levels = [level / RAYLEIGH_MEDIAN for level in sorted(host.as_numbers(medians))]
    floor = [level for level in levels if level <= PLATEAU * levels[0]]
    spread = host.as_number(data.double().std() if data.device.type != "mps" else data.std())
    level = sum(floor) / len(floor)
    if level <= 0 or len(floor) < MIN_PART * len(levels) or level > MAX_FLOOR * spread:
        return None
    return level
