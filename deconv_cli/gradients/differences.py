"""Finite differences that can be believed.

A directional derivative is taken on a ladder of steps, in float64, with an error bar made of the rounding noise of
the loss (measured) and of how far two neighboring steps differ. One-sided differences tell a kink from an error. A
direction in which autograd is off is halved until one element is left, and that element is compared once more by
itself before anything is called wrong.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import torch

from deconv_cli.gradients.verdicts import Comparison

LADDER = (1.0, 10.0, 0.1, 0.01, 100.0, 1000.0)
"""Steps in the order in which they are tried, in units of the smallest at which rounding noise does not matter.

Large networks have so many kinks that only the smallest steps avoid them all."""

_NOISE_SHARE = 1e-6
"""How much of a derivative noise may be at the step of one unit."""

_STEP_RANGE = (1e-9, 1e-3)
"""Steps are relative to the size of the weights."""

TOLERANCE = 3e-6
"""Relative disagreement that is let pass in a direction, beyond the error bar."""

ELEMENT_TOLERANCE = 2e-4
"""Relative disagreement of a single element below which it is never called wrong."""

MAX_RESOLUTION = 0.02
"""Relative error of a gradient that must have been noticeable for it to be called right."""

_FINE = 3
"""Place of the finest step in the ladder."""

_EVALUATIONS = 6
"""How many evaluations one direction costs, about."""

_BARS = 5.0
_SMALLEST_SCALE = 1e-2


class Outcome(Enum):
    """How autograd and finite differences compare."""

    AGREES = auto()
    DIFFERS = auto()
    KINK = auto()
    UNSURE = auto()


@dataclass(frozen=True, eq=False)
class Slot:
    """A tensor to be moved, and the gradient that autograd gives for it.

    Attributes:
        name: what to call it.
        tensor: contiguous; its data is moved in place and put back.
        gradient: same shape.
        left_out: rows of the first axis that are not moved, since they have no gradient by definition.
    """

    name: str
    tensor: torch.Tensor
    gradient: torch.Tensor
    left_out: tuple[int, ...] = ()

    @property
    def scale(self) -> float:
        """Size of the entries, which steps are relative to."""
        return max(float(self.tensor.detach().double().square().mean().sqrt()), _SMALLEST_SCALE)


@dataclass(frozen=True, eq=False)
class Move:
    """A direction for a run of elements of a slot.

    Attributes:
        slot: which tensor.
        start: first element in flat order.
        direction: shape (n,), for the elements `start` to `start + n`.
    """

    slot: Slot
    start: int
    direction: torch.Tensor

    @property
    def products(self) -> torch.Tensor:
        """Gradient times direction, shape (n,)."""
        stop = self.start + self.direction.numel()
        return self.slot.gradient.reshape(-1)[self.start : stop].to(self.direction.dtype) * self.direction

    def part(self, start: int, stop: int) -> Move:
        """Restrict the direction to some of its elements, counted from the first of the slot."""
        return Move(self.slot, start, self.direction[start - self.start : stop - self.start])


@dataclass(frozen=True)
class Estimate:
    """The outcome of one comparison along a direction."""

    outcome: Outcome
    autograd: float
    numeric: float
    error_bar: float
    resolution: float

    def as_comparison(self) -> Comparison:
        """Give the numbers for the report."""
        return Comparison(self.autograd, self.numeric, self.error_bar, self.resolution)


@dataclass(eq=False)
class Probe:
    """A scalar function of some tensors, evaluated at displaced points.

    Attributes:
        evaluate: computes the function where the tensors are now.
        epsilon: relative precision of its value.
        deadline: in seconds of the monotonic clock; nothing is started after it.
        n_evaluations: how often the function was computed.
    """

    evaluate: Callable[[], float]
    epsilon: float = 2.3e-16
    deadline: float = math.inf
    n_evaluations: int = 0
    _base: float | None = field(default=None, init=False)
    _noise: float = field(default=0.0, init=False)

    @property
    def base(self) -> float:
        """The value at the undisplaced point."""
        if self._base is None:
            self._base = self._value()
        return self._base

    @property
    def noise(self) -> float:
        """Rounding noise of a value, an upper estimate."""
        return max(self._noise, 2 * self.epsilon * abs(self.base), 1e-300)

    def steps(self, scale: float) -> list[float]:
        """Build the ladder for a derivative of this size."""
        smallest, largest = _STEP_RANGE
        unit = self.noise / (_NOISE_SHARE * scale) if scale else largest
        unit = min(max(unit, smallest), largest)
        return [unit * factor for factor in LADDER]

    @property
    def is_over(self) -> bool:
        """True after the deadline."""
        return time.monotonic() > self.deadline

    def measure_noise(self, slots: Sequence[Slot], seed: int = 0) -> None:
        """Displace by next to nothing: what changes then is noise."""
        generator = torch.Generator().manual_seed(seed)
        tiny = self.epsilon * 1e4
        for _ in range(3):
            moves = [random_move(slot, generator) for slot in slots]
            expected = tiny * math.fsum(float(move.products.sum()) for move in moves)
            # Half of the change may be signal where the gradient is wrong, which is far below any step taken later.
            self._noise = max(self._noise, 2 * abs(self.at(moves, tiny) - self.base - expected))

    def at(self, moves: Sequence[Move], step: float) -> float:
        """Evaluate at a displaced point, and put everything back."""
        kept = []
        try:
            for move in moves:
                run = move.slot.tensor.data.view(-1)[move.start : move.start + move.direction.numel()]
                kept.append((run, run.clone()))
                run.add_(move.direction.to(run.dtype), alpha=step)
            return self._value()
        finally:
            for run, values in kept:
                run.copy_(values)

    def _value(self) -> float:
        self.n_evaluations += 1
        return self.evaluate()


def random_move(slot: Slot, generator: torch.Generator, scale: float | None = None) -> Move:
    """Draw a sign for every element: an error in any of them shows, and none is hidden by its neighbors."""
    n = slot.tensor.numel()
    dtype = slot.tensor.dtype
    signs = torch.randint(0, 2, (n,), generator=generator, dtype=torch.int8).to(dtype).mul_(2).sub_(1)
    for row in slot.left_out:
        signs.view(slot.tensor.shape)[row] = 0
    return Move(slot, 0, signs.mul_(slot.scale if scale is None else scale))


def compare_along(probe: Probe, moves: Sequence[Move]) -> Estimate:
    """Compare autograd with finite differences along one direction."""
    products = [move.products.double() for move in moves]
    autograd = math.fsum(float(product.sum()) for product in products)
    scale = math.sqrt(math.fsum(float(product.square().sum()) for product in products))
    return _Ladder(probe, moves, autograd, scale).judge()


class _Ladder:
    """The values of a function at ±h for several steps h, and what follows from them."""

    def __init__(self, probe: Probe, moves: Sequence[Move], autograd: float, scale: float) -> None:
        self._probe = probe
        self._moves = moves
        self._autograd = autograd
        self._scale = scale
        self._ends: dict[float, tuple[float, float]] = {}

    def judge(self) -> Estimate:
        """Climb until the two agree sharply or the ladder ends."""
        steps = self._probe.steps(self._scale)
        for n, step in enumerate(steps):
            self._ends[step] = (self._probe.at(self._moves, step), self._probe.at(self._moves, -step))
            if n == 0:
                continue
            numeric, bar = self._best()
            allowed = self._allowed(bar)
            # Where kinks abound, finer steps than the first three are needed, and less can be asked of them.
            is_sharp = allowed <= (1e-4 if n < _FINE else 1e-3) * self._scale
            if abs(numeric - self._autograd) <= allowed and (is_sharp or n == len(steps) - 1 or self._probe.is_over):
                return Estimate(Outcome.AGREES, self._autograd, numeric, bar, self._relative(allowed))
            if (
                n >= _FINE
                and abs(numeric - self._autograd) > 4 * allowed
                and bar <= 1e-4 * max(self._scale, abs(numeric))
            ):
                break
        numeric, bar = self._best()
        allowed = self._allowed(bar)
        outcome = self._kink() or (Outcome.UNSURE if not math.isfinite(numeric) else Outcome.DIFFERS)
        if outcome is Outcome.DIFFERS and abs(numeric - self._autograd) <= allowed:
            outcome = Outcome.AGREES
        return Estimate(outcome, self._autograd, numeric, bar, self._relative(allowed))

    def _allowed(self, bar: float) -> float:
        return _BARS * bar + TOLERANCE * self._scale

    def _relative(self, allowed: float) -> float:
        return allowed / self._scale if self._scale else (0.0 if allowed == 0 else math.inf)

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
            bar = abs(self._central(coarse) - value) + self._probe.noise / fine
            for finer in (step for step in found if step < fine):
                bar = max(bar, abs(self._central(finer) - value) - 2 * self._probe.noise / finer)
            pairs.append((bar if math.isfinite(bar) else math.inf, value))
        bar, value = min(pairs)
        return value, bar

    def _kink(self) -> Outcome | None:
        """Compare the slopes on the two sides: in a corner they differ, however small the step."""
        found = sorted(self._ends)[:3]
        if len(found) < 2:
            return None
        sides = {}
        for step in found:
            above, below = self._ends[step]
            sides[step] = ((above - self._probe.base) / step, (self._probe.base - below) / step)
        fine, coarse = found[-2], found[-1]
        gap, gap_coarse = (abs(sides[step][0] - sides[step][1]) for step in (fine, coarse))
        floor = 20 * self._probe.noise / fine + 1e-5 * self._scale
        if not (gap > floor and gap > 0.3 * gap_coarse):
            return None
        low, high = sorted(sides[fine])
        margin = 0.05 * gap
        return Outcome.KINK if low - margin <= self._autograd <= high + margin else Outcome.DIFFERS


def find_wrong_element(probe: Probe, move: Move, generator: torch.Generator) -> Comparison | None:
    """Halve a direction in which autograd is off until one element is left, and compare that element by itself.

    Returns:
        The comparison at the element, or None if no single element could be confirmed.
    """
    start, stop = move.start, move.start + move.direction.numel()
    while stop - start > 1:
        if probe.is_over:
            return None
        middle = (start + stop) // 2
        if compare_along(probe, [move.part(start, middle)]).outcome is Outcome.DIFFERS:
            stop = middle
        elif compare_along(probe, [move.part(middle, stop)]).outcome is Outcome.DIFFERS:
            start = middle
        else:
            return None
    found = compare_element(probe, move.slot, start)
    if not _is_wrong(found):
        return None
    others = torch.randint(0, move.slot.tensor.numel(), (6,), generator=generator).tolist()
    tried = {start: found, **{n: compare_element(probe, move.slot, n) for n in others if not probe.is_over}}
    wrong = [estimate for estimate in tried.values() if _is_wrong(estimate)]
    ratios = sorted(estimate.autograd / estimate.numeric for estimate in wrong if estimate.numeric)
    return Comparison(
        autograd=found.autograd / move.slot.scale,
        numeric=found.numeric / move.slot.scale,
        error_bar=found.error_bar / move.slot.scale,
        resolution=found.resolution,
        element=unravel(start, move.slot.tensor.shape),
        n_wrong=len(wrong),
        n_tried=len(tried),
        ratio=ratios[len(ratios) // 2] if ratios else None,
        ratio_range=(ratios[0], ratios[-1]) if ratios else None,
    )


def compare_element(probe: Probe, slot: Slot, index: int) -> Estimate:
    """Compare a single element."""
    return compare_along(probe, [Move(slot, index, torch.full((1,), slot.scale, dtype=slot.tensor.dtype))])


def _is_wrong(estimate: Estimate) -> bool:
    size = max(abs(estimate.autograd), abs(estimate.numeric))
    gap = abs(estimate.autograd - estimate.numeric)
    return estimate.outcome is Outcome.DIFFERS and gap > ELEMENT_TOLERANCE * size and gap > 10 * estimate.error_bar


def unravel(index: int, shape: torch.Size) -> tuple[int, ...]:
    """Turn a flat index into one for each axis."""
    found: list[int] = []
    for size in reversed(shape):
        found.append(index % size)
        index //= size
    return tuple(reversed(found))


@dataclass(frozen=True)
class SlotResult:
    """What was found for one tensor; `comparison` is None where the time was up."""

    outcome: Outcome
    comparison: Comparison | None


def compare_slots(
    probe: Probe,
    slots: Sequence[Slot],
    *,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> dict[str, SlotResult]:
    """Compare every tensor, each by itself where the time allows, else many in one direction first.

    Args:
        probe: the function.
        slots: the tensors with their gradients.
        seed: of the directions.
        on_progress: told how many tensors are done, of how many.
    """
    generator = torch.Generator().manual_seed(seed)
    if not slots:
        return {}
    started, before = time.monotonic(), probe.n_evaluations
    probe.measure_noise(slots, seed)
    per_evaluation = (time.monotonic() - started) / (probe.n_evaluations - before)
    results: dict[str, SlotResult] = {}
    # A direction through many tensors costs as much as one through a single tensor.
    size = 1
    if math.isfinite(probe.deadline):
        n_affordable = int(0.6 * (probe.deadline - time.monotonic()) / (_EVALUATIONS * max(per_evaluation, 1e-9)))
        # All at once then: directions through a few layers are no sharper, and where all agree, nothing is left to do.
        size = 1 if n_affordable >= len(slots) else len(slots)
    # Halves of a group that does not agree wait behind the other groups, so that one bad layer does not hold up all.
    waiting = deque(slots[first : first + size] for first in range(0, len(slots), size))
    while waiting:
        group = waiting.popleft()
        found, left = _compare_group(probe, group, generator)
        results |= found
        half = len(left) // 2
        waiting += [left] if left and found else [part for part in (left[:half], left[half:]) if part]
        on_progress(len(results), len(slots))
    return results


def _compare_group(
    probe: Probe, slots: Sequence[Slot], generator: torch.Generator
) -> tuple[dict[str, SlotResult], Sequence[Slot]]:
    """Compare several tensors at once.

    Returns:
        What was found, and the tensors that it was not sharp enough for or that may be wrong.
    """
    if probe.is_over:
        return {slot.name: SlotResult(Outcome.UNSURE, None) for slot in slots}, []
    if len(slots) == 1:
        return {slots[0].name: _compare_slot(probe, slots[0], generator)}, []
    sizes = [float(slot.gradient.double().norm()) for slot in slots]
    shares = sorted(size * slot.scale for size, slot in zip(sizes, slots, strict=True))
    middle = shares[len(shares) // 2]
    # Every tensor should weigh about as much in the direction, without stepping far beyond its own size.
    scales = [
        min(max(middle / size if size else 1.0, 0.01 * slot.scale), 300 * slot.scale)
        for size, slot in zip(sizes, slots, strict=True)
    ]
    results: dict[str, SlotResult] = {}
    for _ in range(2):
        moves = [random_move(slot, generator, scale) for slot, scale in zip(slots, scales, strict=True)]
        estimate = compare_along(probe, moves)
        if estimate.outcome is Outcome.AGREES:
            allowed = _BARS * estimate.error_bar
            for slot, move in zip(slots, moves, strict=True):
                weight = float(move.products.double().norm())
                resolution = allowed / weight + TOLERANCE if weight else math.inf
                if resolution < MAX_RESOLUTION:
                    comparison = Comparison(estimate.autograd, estimate.numeric, estimate.error_bar, resolution)
                    results[slot.name] = SlotResult(Outcome.AGREES, comparison)
        # A step may have gone over more kinks than its error bar tells; another direction meets others.
        if len(results) == len(slots) or probe.is_over:
            break
    return results, [slot for slot in slots if slot.name not in results]


def _compare_slot(probe: Probe, slot: Slot, generator: torch.Generator) -> SlotResult:
    if probe.is_over:
        return SlotResult(Outcome.UNSURE, None)
    for attempt in range(3):
        move = random_move(slot, generator)
        found = compare_along(probe, [move])
        if found.outcome is Outcome.AGREES:
            outcome = Outcome.AGREES if found.resolution < MAX_RESOLUTION else Outcome.UNSURE
            return SlotResult(outcome, found.as_comparison())
        if found.outcome is Outcome.DIFFERS:
            element = find_wrong_element(probe, move, generator)
            if element is not None:
                return SlotResult(Outcome.DIFFERS, element)
        if probe.is_over or attempt == 2:
            break
    outcome = Outcome.KINK if found.outcome is Outcome.KINK else Outcome.UNSURE
    return SlotResult(outcome, found.as_comparison())
