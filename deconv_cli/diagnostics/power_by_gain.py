"""Data sorted by the gain that an operator has for them: what the rules for λ look at, whatever the operator is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators.axes import accumulation_dtype

_GROUPS_PER_DECADE = 200
"""Gains of a group differ by 1.2 % at most: what an estimate passes of it is then known to 2e-6."""
_DECADES = (-14, 10)
"""Of gains that are told apart: far beyond the λ that are tried."""
_N_GROUPS = (_DECADES[1] - _DECADES[0]) * _GROUPS_PER_DECADE


@dataclass(frozen=True, eq=False)
class PowerByGain:
    """How much power the data have at each gain g, and how many of their numbers there are of it.

    The estimate passes what has the gain g by f = g / (g + λ). A singular value decomposition gives both at the same
    gains; where they are estimated each has gains of its own.

    Attributes:
        ratio: g, a number without a unit, shape `(n,)`; infinite where the penalty is zero.
        power: sum of the squares of the data there, shape `(n,)`.
        outside: sum of the squares that the operator does not explain at all, a single number.
        count_ratio: g again, shape `(m,)`.
        count: how many numbers of the data have it, shape `(m,)`.
        n_data: real numbers in the data.
        observed_share: the part of them that was observed, and so is noisy.
    """

    ratio: Tensor
    power: Tensor
    outside: Tensor
    count_ratio: Tensor
    count: Tensor
    n_data: float
    observed_share: float = 1.0


def group_by_gain(gain: Tensor, *amounts: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Add up amounts of about the same gain, as far as a rule can tell: it then takes as long for any picture.

    Zero and infinity are groups of their own.

    Args:
        gain: shape `(n,)`.
        amounts: not negative, shape `(n,)` each.

    Returns:
        For each of the amounts the gains of the groups, by the mean logarithm, and their sums, both of a fixed shape;
        gains and amounts as they are where there are no more than groups.
    """
    if len(gain) <= _N_GROUPS:
        return [(gain, amount) for amount in amounts]
    level, wide = gain.log10(), accumulation_dtype(gain)
    group = ((level - _DECADES[0]) * _GROUPS_PER_DECADE).clamp(0, _N_GROUPS - 1).long() + 1
    group = torch.where(gain == 0, 0, torch.where(gain.isinf(), _N_GROUPS + 1, group))
    level = torch.where(level.isinf(), 0, level)
    found = []
    for amount in amounts:
        sums = amount.new_zeros(_N_GROUPS + 2, dtype=wide).index_add_(0, group, amount.to(wide))
        levels = torch.zeros_like(sums).index_add_(0, group, (amount * level).to(wide))
        gains = 10 ** (levels / sums.clamp_min(torch.finfo(wide).tiny))
        gains[0], gains[-1] = 0, torch.inf
        found.append((gains, sums))
    return found
