"""A window that fades images out towards their edges, so that no jump between opposite edges looks like noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def apply_hann_window(images: Tensor, n_axes: int = 2, power: int = 1) -> Tensor:
    """Fade images out towards their edges, and keep the power of white noise as it is.

    A mean stays what it is but for the two neighbors of the zero frequency along each axis.

    Args:
        images: shape `(*batch, C, *space)`.
        n_axes: how many axes of space there are.
        power: of the window; of a higher one less of a strong frequency leaks to distant weak ones.
    """
    window = images.new_ones(())
    for length in images.shape[-n_axes:]:
        angle = (torch.arange(length, dtype=images.dtype, device=images.device) + 0.5) * (2 * math.pi / length)
        along = (1 - angle.cos()) ** power
        window = window[..., None] * (along / along.square().mean().sqrt())
    return images * window
