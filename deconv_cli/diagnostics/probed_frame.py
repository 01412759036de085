"""A smaller frame, whose pixels have the errors that those of a large one have at the same distance from the edge."""

from __future__ import annotations

import math
from dataclasses import replace

from deconv_cli.diagnostics.continuation import affordable_window, lambda_of_size
from deconv_cli.solvers.pseudo_inverse import PseudoInverse

_SIDE, _SIDE_OF_SIGNALS = 1024, 64
"""A frame of as many pixels as a square of this side has each band of a larger one in it, often enough."""
_LEAST_INSIDE = 32
"""Pixels between bands of opposite edges."""
_WORTHWHILE = 0.5
"""Of the pixels of the whole: a frame that has more of them saves too little to be built."""


def with_smaller_frame(inverse: PseudoInverse, depth: int) -> PseudoInverse:
    """Build an inverse of the same kernel, boundary and λσ²max for a smaller frame, where one is much smaller.

    Args:
        inverse: of a plain convolution; one of a layer is given back, since its errors differ from phase to phase.
        depth: distances from the edge that are told apart.
    """
    if inverse.operator.is_layer:
        return inverse
    size, least = inverse.geometry.image_size, 2 * depth + _LEAST_INSIDE
    if inverse.penalty == "identity" and min(size) < least:
        return inverse  # which holds long waves back, and a thin frame that is shorter has fewer
    window = affordable_window(size, _SIDE if len(size) > 1 else _SIDE_OF_SIGNALS)
    frame = tuple(min(n, max(side, least)) for n, side in zip(size, window, strict=True))
    if math.prod(frame) > _WORTHWHILE * math.prod(size):
        return inverse
    lam = lambda_of_size(inverse.settings.lam, inverse.spectrum.sigma_max, inverse.kernel, frame)
    return PseudoInverse(inverse.kernel, frame, replace(inverse.settings, lam=lam))
