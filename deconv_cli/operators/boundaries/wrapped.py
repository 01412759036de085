"""An image that goes around a torus along some axes, and ends along others."""

from __future__ import annotations

from deconv_cli.errors import UsageError
from deconv_cli.operators.boundaries.rule import CIRCULAR, BoundaryRule


class WrappedBoundary(BoundaryRule):
    """A rule along some axes, and `circular` along the others: that of a block which is cut out along the latter.

    What it says of itself is what the rule does, of the axes along which the image ends. Where pixels outside come from
    differs from axis to axis, and is asked of `along`.

    Args:
        rule: what lies beyond the ends.
        wraps: for each axis of space whether the image goes around.

    Attributes:
        ends: the rule that was given.
    """

    is_mixed = True

    def __init__(self, rule: BoundaryRule, wraps: tuple[bool, ...]) -> None:
        self.name, self.description = rule.name, rule.description
        self.is_zero, self.is_unknown = rule.is_zero, rule.is_unknown
        self.ends, self._wraps = rule, wraps

    @property
    def has_factors(self) -> bool:
        """Whether copies are multiplied by factors."""
        return self.ends.has_factors

    def along(self, axis: int) -> BoundaryRule:
        """Return the rule that holds along an axis of space."""
        return CIRCULAR if self._wraps[axis] else self.ends


def wrap(rule: BoundaryRule, wraps: tuple[bool, ...]) -> BoundaryRule:
    """Let images go around along some axes, and end as a rule says along the others.

    Args:
        rule: the rule.
        wraps: for each axis of space whether images go around; empty for none.

    Raises:
        UsageError: a rule of one name holds along some axes already.
    """
    if rule.is_mixed:
        raise UsageError("images go around along some axes already; give the rule that holds along the others.")
    if all(wraps) and wraps:
        return CIRCULAR
    return WrappedBoundary(rule, wraps) if any(wraps) and not rule.is_periodic else rule
