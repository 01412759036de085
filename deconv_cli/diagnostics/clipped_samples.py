"""Which samples of a picture are full, and say no more of the light than that it was at least so bright."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from deconv_cli.operators import synchronize

_NEARLY_FULL = 0.96
_REACH = 2
_LEAST_SHARE = 1e-4


def find_clipped(y: Tensor, ceiling: float, n_axes: int = 2) -> Tensor | None:
    """Find the samples that are full; compression leaves some of them a little below, beside others that are.

    Args:
        y: shape `(*batch, C, *space)`.
        ceiling: the largest value that a sample can have.
        n_axes: axes of space.

    Returns:
        A mask of the shape of `y`; `None` where there are next to none.
    """
    least = ceiling * (1 - 1e-6)
    if synchronize.as_number(y.max()) < least:
        return None
    full = y >= least
    if synchronize.as_index(full.count_nonzero()) < _LEAST_SHARE * y.numel():
        return None
    pool = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[n_axes]
    images = full.to(y.dtype).reshape(-1, 1, *y.shape[-n_axes:])
    beside = pool(images, 2 * _REACH + 1, stride=1, padding=_REACH).reshape(y.shape) > 0
    return full | (beside & (y >= _NEARLY_FULL * ceiling))
