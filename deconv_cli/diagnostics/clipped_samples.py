"""Which samples of a picture are full, and say no more of the light than that it was at least so bright."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import space_axes

NEARLY_FULL = 0.96
LEAST_SHARE = 1e-4
"""Of the samples, the part from which on full ones are bounds: a few are no more than hot pixels."""
_REACH = 2


def find_clipped(y: Tensor, ceiling: float, size: Sequence[int], least_share: float = LEAST_SHARE) -> Tensor | None:
    """Find the full samples that an estimate may exceed.

    Compression leaves some of them a little below, beside others that are full. A sample that has none but full ones
    around it, as far as half the kernel reaches, is a measurement all the same: no other sample could tell how much
    brighter it was, and the estimate of a wide white background would hang on its far ends alone.

    Args:
        y: shape `(*batch, C, *space)`.
        ceiling: the largest value that a sample can have.
        size: of the kernel, along each axis of space.
        least_share: of full samples.

    Returns:
        A mask of the shape of `y`; `None` where fewer are full, or none of them beside others.
    """
    least = ceiling * (1 - 1e-6)
    if synchronize.as_number(y.max()) < least:
        return None
    full = y >= least
    if synchronize.as_index(full.count_nonzero()) < least_share * y.numel():
        return None
    full |= _is_any_around(full, [_REACH] * len(size)) & (y >= NEARLY_FULL * ceiling)
    bounds = full & _is_any_around(~full, [n_taps // 2 for n_taps in size])
    return bounds if synchronize.holds_anywhere(bounds) else None


def _is_any_around(mask: Tensor, reach: Sequence[int]) -> Tensor:
    """Tell for each sample whether any is set that is no further from it than `reach` along every axis of space."""
    for axis, n_away in zip(space_axes(len(reach)), reach, strict=True):
        # The same time for kernels of all sizes: how many are set up to either end.
        n_set = functional.pad(mask.movedim(axis, -1).cumsum(-1, dtype=torch.int32), (1, 0))
        n, place = mask.shape[axis], torch.arange(mask.shape[axis], device=mask.device)
        before, after = (place - n_away).clamp_min(0), (place + n_away + 1).clamp_max(n)
        mask = (n_set[..., after] > n_set[..., before]).movedim(-1, axis)
    return mask
