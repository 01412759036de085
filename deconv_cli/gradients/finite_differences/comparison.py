"""Autograd and finite differences side by side."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

_SAME_FACTOR = 0.01


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
