"""Autograd and finite differences along one direction.

A derivative is taken at several steps, in float64, with an error bar made of the rounding noise of the function
(measured) and of how far two neighboring steps differ. One-sided differences tell a kink from an error.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from deconv_cli.gradients.finite_differences.scalar_function import Direction, ScalarFunction

_SAME_FACTOR = 0.01

_CORNERS = 0.9
"""How far outside of the slopes of the two sides autograd may lie at many corners, as a share of their difference."""


class Outcome(Enum):
    """How autograd and finite differences compare."""

    AGREES = auto()
    DIFFERS = auto()
    KINK = auto()
    """The slopes on the two sides differ, and autograd gives one between them."""
    UNSURE = auto()


@dataclass(frozen=True)
class Comparison:
    """Autograd against finite differences.

    Attributes:
        outcome: how they compare.
        autograd: derivative by autograd, in loss per unit of step along the direction.
        numeric: the same by finite differences.
        error_bar: how far the numeric value can be off.
        resolution: smallest relative error of the gradient that would have been noticed.
        element: index of the element that is wrong, None for a direction through the whole tensor.
        n_wrong: how many of `n_tried` elements were found wrong, one by one.
        n_tried: elements that were looked at one by one.
        ratio: median of autograd / numeric over the wrong elements.
        ratio_range: the smallest and the largest of these ratios.
    """

    outcome: Outcome
    autograd: float
    numeric: float
    error_bar: float
    resolution: float
    element: tuple[int, ...] | None = None
    n_wrong: int = 0
    n_tried: int = 0
    ratio: float | None = None
    ratio_range: tuple[float, float] | None = None


def is_one_factor(ratio: float, ratio_range: tuple[float, float] | None) -> bool:
    """Return whether ratios are one and the same factor, to within 1 % of their median."""
    return ratio_range is None or ratio_range[1] - ratio_range[0] <= _SAME_FACTOR * abs(ratio)


def describe_factor(ratio: float, ratio_range: tuple[float, float] | None) -> str:
    """Write by what the wrong elements are off: a factor, or the factors around a median."""
    if is_one_factor(ratio, ratio_range) or ratio_range is None:
        return f"by a factor of {ratio:.4g}"
    low, high = ratio_range
    return f"by factors around {ratio:.4g} (from {low:.4g} to {high:.4g})"


TOLERANCE = 3e-6
"""Relative disagreement that is let pass in a direction, beyond the error bar."""

N_ERROR_BARS = 5.0
"""How many error bars autograd and finite differences may be apart."""

_FINE = 3
"""Place of the finest step among those that are tried."""


def compare_along(function: ScalarFunction, directions: Sequence[Direction]) -> Comparison:
    """Compare autograd with finite differences along one direction."""
    autograd = math.fsum(direction.slope for direction in directions)
    scale = math.hypot(*(direction.weight for direction in directions))
    return _DirectionalDerivative(function, directions, autograd, scale).compare()


class _DirectionalDerivative:
    """The values of a function at ±h for several steps h, and what follows from them."""

    def __init__(
        self, function: ScalarFunction, directions: Sequence[Direction], autograd: float, scale: float
    ) -> None:
        self._function = function
        self._directions = directions
        self._autograd = autograd
        self._scale = scale
        self._ends: dict[float, tuple[float, float]] = {}

    def compare(self) -> Comparison:
        """Try steps until the two agree sharply or all are tried."""
        steps = self._function.steps(self._scale)
        for n, step in enumerate(steps):
            self._ends[step] = (self._function.at(self._directions, step), self._function.at(self._directions, -step))
            if n == 0:
                continue
            numeric, bar = self._best()
            allowed, gap = self._allowed(bar), abs(numeric - self._autograd)
            # Where kinks abound, finer steps than the first three are needed, and less can be asked of them.
            is_sharp = allowed <= (1e-4 if n < _FINE else 1e-3) * self._scale
            if gap <= allowed and (is_sharp or n == len(steps) - 1 or self._function.is_over):
                return self._comparison(Outcome.AGREES, numeric, bar)
            if n >= _FINE and gap > 4 * allowed and bar <= 1e-4 * max(self._scale, abs(numeric)):
                break
        numeric, bar = self._best()
        outcome = self._outcome_at_kink() or (Outcome.DIFFERS if math.isfinite(numeric) else Outcome.UNSURE)
        if outcome is Outcome.DIFFERS and abs(numeric - self._autograd) <= self._allowed(bar):
            outcome = Outcome.AGREES
        return self._comparison(outcome, numeric, bar)

    def _comparison(self, outcome: Outcome, numeric: float, bar: float) -> Comparison:
        allowed = self._allowed(bar)
        relative = allowed / self._scale if self._scale else (0.0 if allowed == 0 else math.inf)
        return Comparison(outcome, self._autograd, numeric, bar, relative)

    def _allowed(self, bar: float) -> float:
        return N_ERROR_BARS * bar + TOLERANCE * self._scale

    def _central(self, step: float) -> float:
        above, below = self._ends[step]
        return (above - below) / (2 * step)

    def _best(self) -> tuple[float, float]:
        """Choose the pair of neighboring steps that agree best: the value at the finer one, and its error bar.

        Two coarse steps may agree by chance where kinks abound; what finer steps say against them beyond their noise
        widens the bar.
        """
        found = sorted(self._ends, reverse=True)
        pairs = []
        for coarse, fine in itertools.pairwise(found):
            value = self._central(fine)
            bar = abs(self._central(coarse) - value) + self._function.noise / fine
            for finer in (step for step in found if step < fine):
                bar = max(bar, abs(self._central(finer) - value) - 2 * self._function.noise / finer)
            pairs.append((bar if math.isfinite(bar) else math.inf, value))
        bar, value = min(pairs)
        return value, bar

    def _outcome_at_kink(self) -> Outcome | None:
        """Compare the slopes on the two sides: in a corner they differ, however small the step. None without one."""
        found = sorted(self._ends)[:3]
        if len(found) < 2:
            return None
        sides = {}
        for step in found:
            above, below = self._ends[step]
            sides[step] = ((above - self._function.base) / step, (self._function.base - below) / step)
        fine, coarse = found[-2], found[-1]
        gap, gap_coarse = (abs(sides[step][0] - sides[step][1]) for step in (fine, coarse))
        floor = 20 * self._function.noise / fine + 1e-5 * self._scale
        if not (gap > floor and gap > 0.3 * gap_coarse):
            return None
        low, high = sorted(sides[fine])
        # Each corner has autograd's slope between its two, but their weights differ in sign, so that the sum need not.
        margin = _CORNERS * gap
        return Outcome.KINK if low - margin <= self._autograd <= high + margin else Outcome.DIFFERS
