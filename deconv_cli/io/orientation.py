"""Turning a picture upright: the eight orientations of EXIF and TIFF.

Source: Exif 2.32, tag 274, "Orientation".
"""

from __future__ import annotations

import torch

_TRANSPOSED = (5, 6, 7, 8)
_FLIPPED = {2: (-1,), 3: (-2, -1), 4: (-2,), 6: (-1,), 7: (-2, -1), 8: (-2,)}


def turns_sideways(orientation: int) -> bool:
    """Check whether rows become columns."""
    return orientation in _TRANSPOSED


def upright(values: torch.Tensor, orientation: int) -> torch.Tensor:
    """Turn stored samples upright: `(..., H, W)`, and `(..., W, H)` for orientations 5 to 8 of 1 to 8."""
    turned = values.transpose(-2, -1) if turns_sideways(orientation) else values
    return turned.flip(_FLIPPED.get(orientation, ())).contiguous()
