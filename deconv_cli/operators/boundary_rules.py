"""The boundary rules: the pixels outside an image along any one of its axes."""

from __future__ import annotations

import torch
from torch import Tensor

from deconv_cli.errors import UsageError
from deconv_cli.parts import BOUNDARIES


class BoundaryRule:
    """A rule for the pixels outside an image, along one axis at a time.

    A rule copies pixels of the image, each times a factor, unless it sets `is_zero` or `is_unknown`. A copying rule
    defines `sources`, and `reach` and `factors` if they differ from the ones here. Around the corners of an image the
    axes follow one another, so that factors multiply.

    Attributes:
        name: the name under which the rule is registered.
        description: the assumption as a clause: "zeros were taken to lie outside".
        is_zero: all pixels outside are zero.
        is_unknown: the pixels outside are unknowns of the problem, like those inside.
        is_periodic: the image repeats itself, so that it has no edge.
        is_mixed: the image goes around a torus along some axes only; see `WrappedBoundary`.
    """

    name: str
    description: str
    is_zero = False
    is_unknown = False
    is_periodic = False
    is_mixed = False

    def along(self, axis: int) -> BoundaryRule:
        """Return the rule for an axis of space, counted from the first."""
        return self

    def wraps(self, n_axes: int) -> tuple[bool, ...]:
        """Return for each of `n_axes` axes of space whether the image repeats along it."""
        return tuple(self.along(axis).is_periodic for axis in range(n_axes))

    def wraps_beside_edges(self, n_axes: int) -> tuple[bool, ...]:
        """Return the same if the image has edges along other axes; `False` for all if it has none."""
        return self.wraps(n_axes) if self.is_mixed else (False,) * n_axes

    @property
    def copies_pixels(self) -> bool:
        """Whether the pixels outside are copies of pixels inside."""
        return not (self.is_zero or self.is_unknown)

    @property
    def has_factors(self) -> bool:
        """Whether copies are multiplied by factors."""
        return type(self).factors is not BoundaryRule.factors

    @property
    def keeps_constants(self) -> bool:
        """Whether a constant image may continue as the same constant outside."""
        return not (self.is_zero or self.has_factors)

    def reach(self, length: int) -> int | None:
        """Return how many pixels it can supply beyond either end of a line of `length`; `None` for any number."""
        return None

    def sources(self, position: Tensor, length: int) -> Tensor:
        """Find the pixels that are copied to positions outside a line of `length` pixels, numbered from 0.

        The positions are whole numbers below 0 or from `length` on, shape `(n,)`; so are the results, from 0 to `length
        - 1`.

        Raises:
            UsageError: the rule copies no pixels.
        """
        raise UsageError(f"boundary {self.name} copies no pixels, so a pixel outside has no source.")

    def factors(self, position: Tensor, length: int) -> Tensor | None:
        """Return the factors of the copies at positions outside a line; arguments as for `sources`.

        Returns:
            Real or whole numbers, shape `(n,)`; `None` for plain copies.
        """
        return None


def as_rule(boundary: str | BoundaryRule) -> BoundaryRule:
    """Return a boundary rule, given itself or its name; an unknown name is a `UsageError`."""
    if isinstance(boundary, BoundaryRule):
        return boundary
    rule: BoundaryRule = BOUNDARIES[boundary]
    return rule


class ZeroBoundary(BoundaryRule):
    """All pixels outside are zero: `0 0 | a b c | 0 0`."""

    name = "zero"
    description = "zeros were assumed outside the frame"
    is_zero = True


ZERO = ZeroBoundary()


class CircularBoundary(BoundaryRule):
    """The image repeats itself: `b c | a b c | a b`."""

    name = "circular"
    description = "the image was assumed to repeat"
    is_periodic = True

    def reach(self, length: int) -> int:
        """Reach as far as the line is long."""
        return length

    def sources(self, position: Tensor, length: int) -> Tensor:
        """Count on from the other end."""
        return position % length


CIRCULAR = CircularBoundary()


class ReflectBoundary(BoundaryRule):
    """A mirror image that does not repeat the outermost pixels: `c b | a b c | b a`."""

    name = "reflect"
    description = "its mirror image was assumed outside the frame"

    def reach(self, length: int) -> int:
        """Reach up to the pixel at the other end."""
        return length - 1

    def sources(self, position: Tensor, length: int) -> Tensor:
        """Mirror about the centers of pixels 0 and `length - 1`."""
        return torch.where(position < 0, -position, 2 * (length - 1) - position)


REFLECT = ReflectBoundary()


class SymmetricBoundary(BoundaryRule):
    """A mirror image that repeats the outermost pixels: `b a | a b c | c b`."""

    name = "symmetric"
    description = "its mirror image, with the edge repeated, was assumed outside the frame"

    def reach(self, length: int) -> int:
        """Reach as far as the line is long."""
        return length

    def sources(self, position: Tensor, length: int) -> Tensor:
        """Mirror about the outer sides of pixels 0 and `length - 1`."""
        return torch.where(position < 0, -position - 1, 2 * length - 1 - position)


SYMMETRIC = SymmetricBoundary()


class ReplicateBoundary(BoundaryRule):
    """The outermost pixels continue outside: `a a | a b c | c c`."""

    name = "replicate"
    description = "its edge pixels were assumed to continue outside the frame"

    def sources(self, position: Tensor, length: int) -> Tensor:
        """Stop at the nearest pixel inside."""
        return position.clamp(0, length - 1)


REPLICATE = ReplicateBoundary()


class UnknownBoundary(BoundaryRule):
    """Nothing is assumed: the pixels outside are estimated like those inside, and cropped: `? ? | a b c | ? ?`."""

    name = "unknown"
    description = "nothing was assumed about the outside of the frame"
    is_unknown = True


UNKNOWN = UnknownBoundary()


class WrappedBoundary(BoundaryRule):
    """A rule along some axes, and `circular` along the others, for a block that is cut out along the former.

    Its own attributes are those of the rule at the `ends`. The sources of pixels outside differ from axis to axis: ask
    the rule that `along` returns.
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
    """Let images go around along some axes, empty for none, and apply a rule at their ends along the others."""
    if rule.is_mixed:
        raise UsageError("images already repeat along some axes; give the rule for the others.")
    if all(wraps) and wraps:
        return CIRCULAR
    return WrappedBoundary(rule, wraps) if any(wraps) and not rule.is_periodic else rule
