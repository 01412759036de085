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

from deconv_cli.gradients.nested_tensors import norm_of

STEP_FACTORS = (1.0, 10.0, 0.1, 0.01, 100.0, 1000.0)
"""Steps in the order of trial, in units of the smallest step at which rounding noise does not matter.

Large networks have many kinks, which only the smallest steps avoid."""

_NOISE_SHARE = 1e-6
"""Share of noise in a derivative at the step of one unit."""

_STEP_RANGE = (1e-9, 1e-3)
"""Steps are relative to the size of the weights."""

_SMALLEST_SCALE = 1e-2


@dataclass(frozen=True, eq=False)
class TensorGradient:
    """A contiguous tensor, which is moved in place and restored, and its gradient by autograd, of the same shape.

    The rows `fixed` of the first axis are not moved, since they have no gradient by definition.
    """

    name: str
    tensor: torch.Tensor
    gradient: torch.Tensor
    fixed: tuple[int, ...] = ()

    @cached_property
    def scale(self) -> float:
        """Root mean square of the entries, the unit of a step."""
        return max(norm_of(self.tensor) / math.sqrt(max(self.tensor.numel(), 1)), _SMALLEST_SCALE)


@dataclass(frozen=True, eq=False)
class Direction:
    """A displacement of a tensor's elements from `start` on, in flat order: `values` of shape (n,), times `scale`."""

    moved: TensorGradient
    start: int
    values: torch.Tensor
    scale: float = 1.0

    @classmethod
    def random(cls, moved: TensorGradient, generator: torch.Generator, scale: float | None = None) -> Direction:
        """Draw a sign for every element, so that an error in any of them shows."""
        n = moved.tensor.numel()
        # Eight signs of one draw: the lowest bit of each of its bytes.
        drawn = torch.empty((n + 7) // 8, dtype=torch.int64).random_(generator=generator)
        signs = drawn.view(torch.int8)[:n].bitwise_and_(1).mul_(2).sub_(1)
        for row in moved.fixed:
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
    """A scalar function of tensors at their current values.

    Attributes:
        epsilon: relative precision of its values.
        deadline: no comparison starts later, in seconds of the monotonic clock.
        known: the value at the undisplaced point; None computes it on first use.
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
        """List the steps to try for a derivative of this size, in the order of trial."""
        smallest, largest = _STEP_RANGE
        unit = self.noise / (_NOISE_SHARE * scale) if scale else largest
        unit = min(max(unit, smallest), largest)
        return [unit * factor for factor in STEP_FACTORS]

    def measure_noise(self, tensors: Sequence[TensorGradient], seed: int = 0) -> None:
        """Displace the tensors by next to nothing: the change is noise."""
        generator = torch.Generator().manual_seed(seed)
        tiny = self.epsilon * 1e4
        directions = [Direction.random(moved, generator) for moved in tensors]
        slope = math.fsum(direction.slope for direction in directions)
        for step in (tiny, -tiny, tiny / 2):
            # Where the gradient is wrong, half of the change may be signal; later steps are far larger.
            self._noise = max(self._noise, 2 * abs(self.at(directions, step) - self.base - step * slope))

    def at(self, directions: Sequence[Direction], step: float) -> float:
        """Evaluate at a displaced point, and restore the tensors."""
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
"""At many corners autograd may lie outside of the slopes of the two sides by this share of their difference."""


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
        error_bar: largest error of the numeric value.
        resolution: smallest relative error of the gradient that the comparison can notice.
        element: index of the element that is wrong, None for a direction through the whole tensor.
        n_wrong: wrong elements among the `n_tried` that were compared one by one.
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
    """Write the factor by which the wrong elements are off, or the median and range of several factors."""
    if is_one_factor(ratio, ratio_range) or ratio_range is None:
        return f"by a factor of {ratio:.4g}"
    low, high = ratio_range
    return f"by factors around {ratio:.4g} (from {low:.4g} to {high:.4g})"


TOLERANCE = 3e-6
"""Relative difference along a direction that is allowed beyond the error bar."""

N_ERROR_BARS = 5.0
"""Error bars by which autograd and finite differences may differ."""

_FINE = 3
"""Index of the finest step in the order of trial."""


def compare_along(function: ScalarFunction, directions: Sequence[Direction]) -> Comparison:
    """Compare autograd with finite differences along one direction, until they agree closely or no steps remain.

    The error bar combines the measured rounding noise of the function and the difference between two neighboring
    steps.
    """
    autograd = math.fsum(direction.slope for direction in directions)
    scale = math.hypot(*(direction.weight for direction in directions))
    steps = function.steps(scale)
    ends: dict[float, tuple[float, float]] = {}
    outcome, numeric, bar = None, math.nan, math.inf
    for n, step in enumerate(steps):
        ends[step] = (function.at(directions, step), function.at(directions, -step))
        if n == 0:
            continue
        numeric, bar = _derivative_of_best_steps(ends, function.noise)
        allowed, gap = N_ERROR_BARS * bar + TOLERANCE * scale, abs(numeric - autograd)
        # Many kinks need finer steps than the first three, which are less sharp.
        is_sharp = allowed <= (1e-4 if n < _FINE else 1e-3) * scale
        if gap <= allowed and (is_sharp or n == len(steps) - 1 or function.is_over):
            outcome = Outcome.AGREES
            break
        if n >= _FINE and gap > 4 * allowed and bar <= 1e-4 * max(scale, abs(numeric)):
            break
    allowed = N_ERROR_BARS * bar + TOLERANCE * scale
    if outcome is None:
        outcome = _outcome_at_kink(function, ends, autograd, scale)
        outcome = outcome or (Outcome.DIFFERS if math.isfinite(numeric) else Outcome.UNSURE)
        if outcome is Outcome.DIFFERS and abs(numeric - autograd) <= allowed:
            outcome = Outcome.AGREES
    relative = allowed / scale if scale else (0.0 if allowed == 0 else math.inf)
    return Comparison(outcome, autograd, numeric, bar, relative)


_Ends = dict[float, tuple[float, float]]
"""For each step h the values of a function at +h and −h."""


def _derivative_of_best_steps(ends: _Ends, noise: float) -> tuple[float, float]:
    """Choose the neighboring steps that agree best: the derivative at the finer one, and its error bar.

    Two coarse steps may agree by chance where there are many kinks, so finer steps that differ by more than their noise
    widen the bar.
    """
    central = {step: (above - below) / (2 * step) for step, (above, below) in ends.items()}
    pairs = []
    for coarse, fine in itertools.pairwise(sorted(central, reverse=True)):
        value = central[fine]
        bar = abs(central[coarse] - value) + noise / fine
        for finer in (step for step in central if step < fine):
            bar = max(bar, abs(central[finer] - value) - 2 * noise / finer)
        pairs.append((bar if math.isfinite(bar) else math.inf, value))
    bar, value = min(pairs)
    return value, bar


def _outcome_at_kink(function: ScalarFunction, ends: _Ends, autograd: float, scale: float) -> Outcome | None:
    """Compare the slopes on the two sides, which differ at a corner for any step; None where there is no corner."""
    found = sorted(ends)[:3]
    if len(found) < 2:
        return None
    slopes = {step: ((ends[step][0] - function.base) / step, (function.base - ends[step][1]) / step) for step in found}
    fine, coarse = found[-2], found[-1]
    gap, gap_coarse = (abs(slopes[step][0] - slopes[step][1]) for step in (fine, coarse))
    floor = 20 * function.noise / fine + 1e-5 * scale
    if not (gap > floor and gap > 0.3 * gap_coarse):
        return None
    low, high = sorted(slopes[fine])
    # At one corner autograd's slope lies between the slopes of the two sides. The sum over several corners, each with a
    # sign, may lie a little outside.
    margin = _CORNERS * gap
    return Outcome.KINK if low - margin <= autograd <= high + margin else Outcome.DIFFERS
