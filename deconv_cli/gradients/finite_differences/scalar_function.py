"""A scalar function of some tensors, evaluated at displaced points."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from deconv_cli.gradients.tensors_in import norm_of

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
