"""Between which ends the samples of a file lie, and which of them is white.

torch computes next to nothing with whole numbers without a sign, so those of 16 bits are held by 32: the type of a
tensor does not tell alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

WHITES = {"uint8": 255.0, "uint16": 65535.0}
"""Stored value of white by sample type, by the NumPy name. Other types have no white that everybody agrees on."""


def sample_type(samples: Tensor, stored: str | None = None) -> str:
    """Name the type of samples as their file had it.

    Args:
        samples: any shape.
        stored: the NumPy name of the type in the file, where that is known. Else 32 bits that reach the white of 16,
            and do not go beyond, are taken for those.
    """
    if stored is not None:
        return stored
    if samples.dtype == torch.int32 and samples.numel():
        lowest, highest = (int(end) for end in samples.aminmax())
        if lowest >= 0 and highest == WHITES["uint16"]:
            return "uint16"
    return str(samples.dtype).removeprefix("torch.")


def white_of(samples: Tensor, stored: str | None = None) -> float | None:
    """Give the stored value of white; `None` where nobody agrees on one. For the arguments see `sample_type`."""
    return WHITES.get(sample_type(samples, stored))


def limits_of(samples: Tensor, stored: str | None = None) -> tuple[float, float] | None:
    """Give the least and the largest value that whole numbers can have; `None` for others. See `sample_type`."""
    dtype = getattr(torch, sample_type(samples, stored))
    if dtype.is_floating_point or dtype == torch.bool:
        return None
    limits = torch.iinfo(dtype)
    return float(limits.min), float(limits.max)
