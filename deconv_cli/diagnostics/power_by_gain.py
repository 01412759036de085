"""Data sorted by the gain that an operator has for them: what the rules for λ look at, whatever the operator is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
