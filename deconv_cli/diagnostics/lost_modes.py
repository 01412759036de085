"""How many modes of an image a boundary loses, counted along each axis, and the paddings under which it loses none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from deconv_cli.diagnostics.winding import AxisRoots
from deconv_cli.operators.geometry import Geometry, Pads
from deconv_cli.vocabulary import Size

Roots: TypeAlias = tuple[AxisRoots, ...]
"""The roots of a kernel's polynomial along each axis."""


@dataclass(frozen=True)
class LostModes:
    """Estimated numbers of modes whose singular values vanish as the image grows, though those of the symbol do not.

    Attributes:
        n_border_modes: all of them.
        n_lost_modes: those below the threshold at this size.
    """

    n_border_modes: int
    n_lost_modes: int


def count_lost_modes(roots: Roots, pads: Pads, image_size: Size, threshold: float) -> LostModes:
    """Count the modes that a boundary loses.

    Args:
        roots: of the kernel's polynomial along each axis.
        pads: border pixels.
        image_size: pixels of the image along each axis.
        threshold: of singular values, in units of the root mean square of the symbol's.
    """
    found = below = 0.0
    by_axis = [
        along.border_modes((before, after), length, math.prod(image_size) // length)
        for along, before, after, length in zip(roots, pads.before, pads.after, image_size, strict=True)
    ]
    for group in zip(*by_axis, strict=True):
        matched = sum(modes.estimate(modes.n_modes) for modes in group)
        # Modes in the null space along one axis and surplus data along another are matched around the corners.
        null = sum(modes.estimate(modes.n_null) for modes in group)
        left_null = sum(modes.estimate(modes.n_left_null) for modes in group)
        around_corners = min(null, left_null) - matched
        found += matched + around_corners
        below += around_corners + sum(modes.estimate((modes.singular_values < threshold).sum(-1)) for modes in group)
    return LostModes(_rounded(found), _rounded(below))


def _rounded(estimate: float) -> int:
    """Round, but let nothing that was found vanish."""
    return max(round(estimate), int(estimate > 0))


def find_lossless_pads(roots: Roots, geometry: Geometry, threshold: float) -> Pads | None:
    """Find pads of the same total width, as near as can be to the present ones, that lose nothing; `None` for none."""
    pads, size = geometry.pads, geometry.image_size
    before = []
    for axis, (present, total) in enumerate(zip(pads.before, pads.total, strict=True)):
        start = _lossless_start(roots[axis], present, total, size[axis], math.prod(size) // size[axis], threshold)
        if start is None:
            return None
        before.append(start)
    shifted = Pads(tuple(before), tuple(total - start for start, total in zip(before, pads.total, strict=True)))
    return shifted if count_lost_modes(roots, shifted, size, threshold).n_lost_modes == 0 else None


def _lossless_start(roots: AxisRoots, present: int, total: int, length: int, edge: int, threshold: float) -> int | None:
    """Find how many of `total` border pixels should stand at the start of an axis of `length` pixels."""
    for start in sorted(range(total + 1), key=lambda start: abs(start - present)):
        groups = roots.border_modes((start, total - start), length, edge)
        if not any(bool((modes.singular_values < threshold).any()) for modes in groups):
            return start
    return None
