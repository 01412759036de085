"""Autograd against finite differences along one direction, with an error bar."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property

import torch

from deconv_cli.gradients.tensors import norm_of

STEP_FACTORS = (1.0, 10.0, 0.1, 0.01, 100.0, 1000.0)
"""Steps in the order in which they are tried, in units of the smallest at which rounding noise does not matter.

Large networks have so many kinks that only the smallest steps avoid them all."""

_NOISE_SHARE = 1e-6
"""How much of a derivative noise may be at the step of one unit."""

_STEP_RANGE = (1e-9, 1e-3)
"""Steps are relative to the size of the weights."""

_SMALLEST_SCALE = 1e-2


@dataclass(frozen=True, eq=False)
class TensorGradient:
    """A contiguous tensor, moved in place and put back, and the gradient of the same shape that autograd gives for it.

    Rows of the first axis in `left_out` are not moved, since they have no gradient by definition.
    """

    name: str
    tensor: torch.Tensor
    gradient: torch.Tensor
    left_out: tuple[int, ...] = ()

    @cached_property
    def scale(self) -> float:
        """Size of the entries, which steps are relative to."""
        return max(norm_of(self.tensor) / math.sqrt(max(self.tensor.numel(), 1)), _SMALLEST_SCALE)


@dataclass(frozen=True, eq=False)
class Direction:
    """How far a tensor's elements from `start` on move, in flat order: `values` of shape (n,), times `scale`."""

    moved: TensorGradient
    start: int
    values: torch.Tensor
    scale: float = 1.0

    @classmethod
    def random(cls, moved: TensorGradient, generator: torch.Generator, scale: float | None = None) -> Direction:
        """Draw a sign for every element: an error in any of them shows, and none is hidden by its neighbors."""
        n = moved.tensor.numel()
        # Eight signs of one draw: the lowest bit of each of its bytes.
        drawn = torch.empty((n + 7) // 8, dtype=torch.int64).random_(generator=generator)
        signs = drawn.view(torch.int8)[:n].bitwise_and_(1).mul_(2).sub_(1)
        for row in moved.left_out:
            signs.view(moved.tensor.shape)[row] = 0
        return cls(moved, 0, signs, moved.scale if scale is None else scale)

    @property
    def slope(self) -> float:
        """Gradient times direction."""
        return self.scale * self._moments[0]

    @property
    def weight(self) -> float:
        """Norm of the products that the slope is the sum of."""
        return self.scale * self._moments[1]

    @cached_property
    def _moments(self) -> tuple[float, float]:
        stop = self.start + self.values.numel()
        products = self.moved.gradient.reshape(-1)[self.start : stop].double() * self.values
        return float(products.sum()), float(products.norm())

    def part(self, start: int, stop: int) -> Direction:
        """Restrict the direction to some of its elements, counted from the first of the tensor."""
        return Direction(self.moved, start, self.values[start - self.start : stop - self.start], self.scale)


@dataclass(eq=False)
class ScalarFunction:
    """A scalar function of some tensors, computed where they are now, with its relative precision `epsilon`.

    Nothing is started after the deadline, in seconds of the monotonic clock. The value at the undisplaced point is
    `known`, or computed when it is asked for.
    """

    evaluate: Callable[[], float]
    epsilon: float = 2.3e-16
    deadline: float = math.inf
    known: float | None = None
    n_evaluations: int = field(default=0, init=False)
    _noise: float = field(default=0.0, init=False)

    @property
    def base(self) -> float:
        """The value at the undisplaced point."""
        if self.known is None:
            self.known = self._value()
        return self.known

    @property
    def noise(self) -> float:
        """Rounding noise of a value, an upper estimate."""
        return max(self._noise, 2 * self.epsilon * abs(self.base), 1e-300)

    @property
    def is_over(self) -> bool:
        """True after the deadline."""
        return time.monotonic() > self.deadline

    def steps(self, scale: float) -> list[float]:
        """List the steps to try for a derivative of this size."""
        smallest, largest = _STEP_RANGE
        unit = self.noise / (_NOISE_SHARE * scale) if scale else largest
        unit = min(max(unit, smallest), largest)
        return [unit * factor for factor in STEP_FACTORS]

    def measure_noise(self, tensors: Sequence[TensorGradient], seed: int = 0) -> None:
        """Displace by next to nothing: what changes then is noise."""
        generator = torch.Generator().manual_seed(seed)
        tiny = self.epsilon * 1e4
        directions = [Direction.random(moved, generator) for moved in tensors]
        slope = math.fsum(direction.slope for direction in directions)
        for step in (tiny, -tiny, tiny / 2):
            # Half of the change may be signal where the gradient is wrong, which is far below any step taken later.
            self._noise = max(self._noise, 2 * abs(self.at(directions, step) - self.base - step * slope))

    def at(self, directions: Sequence[Direction], step: float) -> float:
        """Evaluate at a displaced point, and put everything back."""
        kept = []
        try:
            for direction in directions:
                stop = direction.start + direction.values.numel()
                run = direction.moved.tensor.data.view(-1)[direction.start : stop]
                kept.append((run, run.clone()))
                run.add_(direction.values, alpha=step * direction.scale)
            return self._value()
        finally:
            for run, values in kept:
                run.copy_(values)

    def _value(self) -> float:
        self.n_evaluations += 1
        return self.evaluate()


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
