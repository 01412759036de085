"""Which samples of a picture are full, and say no more of the light than that it was at least so bright."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from deconv_cli.operators import synchronize

_NEARLY_FULL = 0.96
_REACH = 2
_LEAST_SHARE = 1e-4


def find_clipped(y: Tensor, ceiling: float) -> Tensor | None:
    """Find the samples that are full; compression leaves some of them a little below, beside others that are.

    Args:
        y: shape `(*batch, C, H, W)`.
        ceiling: the largest value that a sample can have.

    Returns:
        A mask of the shape of `y`; `None` where there are next to none.
    """
    full = y >= ceiling * (1 - 1e-6)
    if synchronize.as_number(full.double().mean()) < _LEAST_SHARE:
        return None
    planes = full.to(y.dtype).reshape(-1, 1, *y.shape[-2:])
    beside = functional.max_pool2d(planes, 2 * _REACH + 1, stride=1, padding=_REACH).reshape(y.shape) > 0
    return full | (beside & (y >= _NEARLY_FULL * ceiling))
