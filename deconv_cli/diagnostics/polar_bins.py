"""Bins of frequency and direction on a torus, in any number of axes: the same for all data of one size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from deconv_cli.diagnostics.frequencies import directional_functions, frequency_grid
from deconv_cli.operators import synchronize
from deconv_cli.vocabulary import Size

LOWEST = 0.015
"""Cycles a pixel; what is below is left out."""
_N_RADIAL, _N_ANGULAR = 96, 12
_N_LEVELS = 4
"""Along each axis, the directions in space are told apart by so many sizes of that part of them."""
_N_SIZES = 4
"""So many sizes are kept, each of a few megabytes."""


@dataclass(frozen=True, eq=False)
class PolarBins:
    """What the n bins that hold any frequency are, and which frequencies of `torch.fft.rfftn` they hold.

    Attributes:
        index: the bin of each frequency, any one for those left out, shape `(F,)`.
        weight: half of how often each frequency stands in the full spectrum, 0 for those left out, shape `(F,)`.
        count: sums of the weights, shape `(n,)`.
        radius: mean cycles a pixel, shape `(n,)`.
        directions: means of the functions of second degree of the direction, shape `(n,)` each.
    """

    index: Tensor
    weight: Tensor
    count: Tensor
    radius: Tensor
    directions: tuple[Tensor, ...]

    def mean(self, values: Tensor) -> Tensor:
        """Average over each bin what is given at the frequencies of `torch.fft.rfftn`, shape `(n,)`."""
        return _summed(self.index, self.weight * values.flatten(), len(self.count)) / self.count


@lru_cache(maxsize=_N_SIZES)
def polar_bins(torus: Size, dtype: torch.dtype, device: torch.device) -> PolarBins:
    """Lay out the bins on a torus `(N1, N2, ...)`."""
    waves = frequency_grid(torus, torch.empty(0, dtype=dtype, device=device)) / (2 * math.pi)
    radius = torch.linalg.vector_norm(waves, dim=-1)
    units = waves / torch.where(radius > 0, radius, 1)[..., None]
    ring = (radius * (_N_RADIAL / (0.5 * math.sqrt(len(torus))))).long().clamp_max(_N_RADIAL - 1)
    sector, n_sectors = _sectors(units)
    index = (ring * n_sectors + sector).flatten()
    last = waves[..., -1]
    weight = (torch.where((last == 0) | (last > 0.5 - 1e-9), 0.5, 1.0) * (radius >= LOWEST)).to(dtype).flatten()
    counts = _summed(index, weight, _N_RADIAL * n_sectors)
    kept = synchronize.places(counts > 0)
    place = torch.zeros_like(counts, dtype=torch.int64).index_copy_(0, kept, torch.arange(len(kept), device=device))
    index, count = place[index], counts[kept]
    radius, *directions = (
        _summed(index, weight * values.flatten(), len(kept)) / count
        for values in (radius, *directional_functions(units)[1:])
    )
    return PolarBins(index, weight, count, radius, tuple(directions))


def _summed(index: Tensor, values: Tensor, n_bins: int) -> Tensor:
    # There are no bins where there is one pixel; what the index names then is nothing.
    return values.new_zeros(max(n_bins, 1)).scatter_add(0, index, values)[:n_bins]


def _sectors(units: Tensor) -> tuple[Tensor, int]:
    """Number the sectors of directions, of which opposite ones are the same; give how many there are too."""
    if units.shape[-1] == 2:
        angle = torch.atan2(units[..., 0], units[..., 1])
        return ((angle / math.pi + 0.5) * _N_ANGULAR).long().clamp_max(_N_ANGULAR - 1), _N_ANGULAR
    sector = torch.zeros_like(units[..., 0], dtype=torch.int64)
    for part in units.unbind(-1)[:-1]:  # what is left has no sign
        level = ((part + 1) * (_N_LEVELS / 2)).long().clamp_max(_N_LEVELS - 1)
        sector = sector * _N_LEVELS + level
    return sector, _N_LEVELS ** (units.shape[-1] - 1)
