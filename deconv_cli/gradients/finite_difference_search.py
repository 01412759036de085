"""Compare many tensors with finite differences, and search for the element that is wrong."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from deconv_cli.gradients.finite_differences import (
    N_ERROR_BARS,
    TOLERANCE,
    Comparison,
    Direction,
    Outcome,
    ScalarFunction,
    TensorGradient,
    compare_along,
)

ELEMENT_TOLERANCE = 2e-4
"""A single element with a smaller relative difference is never called wrong."""

MAX_RESOLUTION = 0.02
"""A gradient is called right if the comparison could notice this relative error."""

_EVALUATIONS = 6
"""Approximate number of evaluations for one direction."""


def compare_tensors(
    function: ScalarFunction,
    tensors: Sequence[TensorGradient],
    *,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> dict[str, Comparison | None]:
    """Compare every tensor, one by one if there is time, else many in one direction first.

    Returns:
        The comparisons by name; None where the time was up.
    """
    generator = torch.Generator().manual_seed(seed)
    if not tensors:
        return {}
    results: dict[str, Comparison | None] = {}
    size = _group_size(function, tensors, seed)
    # Halves of a group that disagrees wait behind the other groups, so that one bad layer does not delay the rest.
    waiting = deque(tensors[first : first + size] for first in range(0, len(tensors), size))
    while waiting:
        group = waiting.popleft()
        found, left = _compare_group(function, group, generator)
        results |= found
        half = len(left) // 2
        waiting += [left] if left and found else [part for part in (left[:half], left[half:]) if part]
        on_progress(len(results), len(tensors))
    return results


def _group_size(function: ScalarFunction, tensors: Sequence[TensorGradient], seed: int) -> int:
    """Choose how many tensors share a direction: one if there is time for that, else all.

    A direction costs the same for one and for all, and a direction through a few layers is no sharper.
    """
    started, before = time.monotonic(), function.n_evaluations
    function.measure_noise(tensors, seed)
    per_evaluation = (time.monotonic() - started) / (function.n_evaluations - before)
    if not math.isfinite(function.deadline):
        return 1
    left = function.deadline - time.monotonic()
    n_affordable = int(0.6 * left / (_EVALUATIONS * max(per_evaluation, 1e-9)))
    return 1 if n_affordable >= len(tensors) else len(tensors)


def _compare_group(
    function: ScalarFunction, tensors: Sequence[TensorGradient], generator: torch.Generator
) -> tuple[dict[str, Comparison | None], Sequence[TensorGradient]]:
    """Compare several tensors at once.

    Returns:
        The comparisons, and the tensors that may be wrong or that need a sharper comparison.
    """
    if function.is_over:
        return {moved.name: None for moved in tensors}, []
    if len(tensors) == 1:
        return {tensors[0].name: _compare_tensor(function, tensors[0], generator)}, []
    results: dict[str, Comparison | None] = {}
    scales = _balanced_scales(tensors)
    for _ in range(2):
        directions = [Direction.random(moved, generator, scale) for moved, scale in zip(tensors, scales, strict=True)]
        estimate = compare_along(function, directions)
        if estimate.outcome is Outcome.AGREES:
            results |= _agreeing(estimate, directions)
        # A step may cross more kinks than its error bar shows; another direction crosses others.
        if len(results) == len(tensors) or function.is_over:
            break
    return results, [moved for moved in tensors if moved.name not in results]


def _balanced_scales(tensors: Sequence[TensorGradient]) -> list[float]:
    """Give every tensor about the same weight in the direction, without steps far beyond its own size."""
    sizes = [float(moved.gradient.double().norm()) for moved in tensors]
    shares = sorted(size * moved.scale for size, moved in zip(sizes, tensors, strict=True))
    middle = shares[len(shares) // 2]
    return [
        min(max(middle / size if size else 1.0, 0.01 * moved.scale), 300 * moved.scale)
        for size, moved in zip(sizes, tensors, strict=True)
    ]


def _agreeing(estimate: Comparison, directions: Sequence[Direction]) -> dict[str, Comparison | None]:
    """List the tensors whose wrong gradient the direction would show."""
    results: dict[str, Comparison | None] = {}
    for direction in directions:
        weight = direction.weight
        resolution = N_ERROR_BARS * estimate.error_bar / weight + TOLERANCE if weight else math.inf
        if resolution < MAX_RESOLUTION:
            results[direction.moved.name] = replace(estimate, resolution=resolution)
    return results


def _compare_tensor(function: ScalarFunction, moved: TensorGradient, generator: torch.Generator) -> Comparison | None:
    if function.is_over:
        return None
    for attempt in range(3):
        direction = Direction.random(moved, generator)
        found = compare_along(function, [direction])
        if found.outcome is Outcome.AGREES:
            return found if found.resolution < MAX_RESOLUTION else replace(found, outcome=Outcome.UNSURE)
        if found.outcome is Outcome.DIFFERS:
            element = find_wrong_element(function, direction, generator)
            if element is not None:
                return element
            if _are_corners(function, direction):
                found = replace(found, outcome=Outcome.KINK)
        if function.is_over or attempt == 2:
            break
    return found if found.outcome is Outcome.KINK else replace(found, outcome=Outcome.UNSURE)


def _are_corners(function: ScalarFunction, direction: Direction) -> bool:
    """Return whether autograd lies between the slopes of the two sides in each half of a direction."""
    n = direction.values.numel()
    if function.is_over or n < 2:
        return False
    halves = [direction.part(0, n // 2), direction.part(n // 2, n)]
    outcomes = {compare_along(function, [half]).outcome for half in halves}
    return Outcome.KINK in outcomes and outcomes <= {Outcome.KINK, Outcome.AGREES}


def find_wrong_element(function: ScalarFunction, direction: Direction, generator: torch.Generator) -> Comparison | None:
    """Halve a direction in which autograd is off until one element remains, and compare that element alone.

    Returns:
        The comparison at the element, or None if no single element could be confirmed.
    """
    start, stop = direction.start, direction.start + direction.values.numel()
    while stop - start > 1:
        if function.is_over:
            return None
        middle = (start + stop) // 2
        if compare_along(function, [direction.part(start, middle)]).outcome is Outcome.DIFFERS:
            stop = middle
        elif compare_along(function, [direction.part(middle, stop)]).outcome is Outcome.DIFFERS:
            start = middle
        else:
            return None
    found = _compare_element(function, direction.moved, start)
    return _with_others(function, direction.moved, start, found, generator) if _is_wrong(found) else None


def _with_others(
    function: ScalarFunction, moved: TensorGradient, index: int, found: Comparison, generator: torch.Generator
) -> Comparison:
    """Compare a few other elements too, which shows whether one or all are wrong."""
    others = torch.randint(0, moved.tensor.numel(), (6,), generator=generator).tolist()
    tried = {index: found, **{n: _compare_element(function, moved, n) for n in others if not function.is_over}}
    wrong = [estimate for estimate in tried.values() if _is_wrong(estimate)]
    ratios = sorted(estimate.autograd / estimate.numeric for estimate in wrong if estimate.numeric)
    return Comparison(
        outcome=Outcome.DIFFERS,
        autograd=found.autograd / moved.scale,
        numeric=found.numeric / moved.scale,
        error_bar=found.error_bar / moved.scale,
        resolution=found.resolution,
        element=unravel(index, moved.tensor.shape),
        n_wrong=len(wrong),
        n_tried=len(tried),
        ratio=ratios[len(ratios) // 2] if ratios else None,
        ratio_range=(ratios[0], ratios[-1]) if ratios else None,
    )


def _compare_element(function: ScalarFunction, moved: TensorGradient, index: int) -> Comparison:
    return compare_along(function, [Direction(moved, index, torch.ones(1, dtype=moved.tensor.dtype), moved.scale)])


def _is_wrong(estimate: Comparison) -> bool:
    size = max(abs(estimate.autograd), abs(estimate.numeric))
    gap = abs(estimate.autograd - estimate.numeric)
    return estimate.outcome is Outcome.DIFFERS and gap > ELEMENT_TOLERANCE * size and gap > 10 * estimate.error_bar


def unravel(index: int, shape: torch.Size) -> tuple[int, ...]:
    """Turn a flat index into one for each axis."""
    return tuple(int(position) for position in torch.unravel_index(torch.tensor(index), shape))
