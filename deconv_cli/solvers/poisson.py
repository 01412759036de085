"""Counts with Poisson noise: how far a mean is from them, and how far it may be expected to be."""

from __future__ import annotations

import torch
from torch import Tensor

from deconv_cli.solvers.norms import accumulation_dtype

# Above this mean the expected deviance is 1 + 1/(6m) to three digits; below it is tabulated.
MAX_TABULATED_MEAN = 30.0
N_TABULATED = 400
# No expected deviance is above this one, which is that of about 1.4 counts.
MAX_EXPECTED_DEVIANCE = 1.2
# Counts beyond this one have no weight for any tabulated mean.
MAX_COUNT = 100
# Steps of the lattice of held-out samples, along the channels, planes, rows and columns.
LATTICE = (5, 7, 4, 1)


def divergence(y: Tensor, mean: Tensor) -> Tensor:
    """Compute y·log(y/m) − y + m sample by sample: half the deviance of counts `y` under means `mean` > 0.

    Its sum is, but for a constant, the negative logarithm of the likelihood of `y` (Csiszár, Why least squares and
    maximum entropy?, Annals of Statistics 19, 1991). Every sample's part is at least zero.
    """
    wide = accumulation_dtype(y)
    y, mean = y.to(wide), mean.to(wide)
    return torch.xlogy(y, y / mean) - y + mean


def expected_deviance(mean: Tensor) -> Tensor:
    """Compute the expectation of 2·(k·log(k/m) − k + m) for counts k of mean m: near 1 for many, near 0 for few.

    That it is 1 is the discrepancy principle of Bertero, Boccacci, Talenti, Zanella and Zanni, A discrepancy principle
    for Poisson data, Inverse Problems 26, 2010. For fewer than about five counts it is not, and its true value, a sum
    over all counts, takes its place.

    Args:
        mean: m ≥ 0, of any shape.
    """
    roots = torch.linspace(0, MAX_TABULATED_MEAN**0.5, N_TABULATED, dtype=mean.dtype, device=mean.device)
    m = roots.square()[1:, None]
    k = torch.arange(MAX_COUNT + 1, dtype=mean.dtype, device=mean.device)
    chances = torch.exp(torch.xlogy(k, m) - m - torch.lgamma(k + 1))
    table = torch.cat([m.new_zeros(1), (chances * 2 * (torch.xlogy(k, k / m) - k + m)).sum(dim=-1)])
    # The roots are spaced evenly, since the deviance rises steeply from zero.
    place = mean.clamp(0, MAX_TABULATED_MEAN).sqrt() / roots[1]
    below = place.floor().clamp_max(N_TABULATED - 2)
    index = below.long()
    tabulated = torch.lerp(table[index], table[index + 1], place - below)
    return torch.where(mean < MAX_TABULATED_MEAN, tabulated, 1 + 1 / (6 * mean.clamp_min(1.0)))


def held_out(y: Tensor, n_dims: int) -> Tensor:
    """Pick about one sample in nineteen, to compare an estimate with that was made without them.

    They lie on a slanted lattice, so that every row, column and channel has its share, without any chance.

    Args:
        y: shape `(*batch, C, *size)`.
        n_dims: axes of one image, its channels among them: at most four.

    Returns:
        Booleans, shape `(C, *size)`.
    """
    number = torch.zeros((), dtype=torch.int64, device=y.device)
    steps = (LATTICE[0], *LATTICE[-(n_dims - 1) :])
    for step, n in zip(steps, y.shape[y.ndim - n_dims :], strict=True):
        number = number[..., None] + step * torch.arange(n, device=y.device)
    return number % 19 == 0
