"""The only functions in which the host waits for the device.

To read a number from a device, the host waits until the device has finished all queued work. So operators and solvers
read the numbers of data here and nowhere else: all other code runs ahead of the device. A test that replaces these
functions follows every branch of an algorithm without any numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import psutil
import torch
from torch import Tensor

from deconv_cli.allocator import kept_bytes


def holds_anywhere(mask: Tensor) -> bool:
    """Return whether any entry of `mask`, of any shape, is true or not zero."""
    return bool(mask.any())


def holds_everywhere(mask: Tensor) -> bool:
    """Return whether every entry of `mask`, of any shape, is true or not zero."""
    return bool(mask.all())


def are_finite(values: Tensor) -> bool:
    """Return whether `values`, of any shape, hold no NaN or infinite value.

    NaN carries through to the least and the largest value: one pass without new memory, where `isfinite` takes sixty
    times as long.
    """
    return values.numel() == 0 or holds_everywhere(torch.isfinite(torch.stack(values.detach().aminmax())))


def as_number(value: Tensor) -> float:
    """Read a tensor of one entry."""
    return float(value)


def as_numbers(values: Tensor) -> list[float]:
    """Read all entries of a tensor of shape `(n,)` at once."""
    return [float(value) for value in values.tolist()]


def as_index(value: Tensor) -> int:
    """Read a whole number from a tensor of one entry."""
    return int(value)


def medians(parts: Sequence[Tensor]) -> list[float]:
    """Read the median of each part, of any shape; for an even number of entries the lower one of the middle two.

    On the host NumPy finds it in a fourth to a seventh of the time.
    """
    if parts and parts[0].device.type != "cpu":
        return as_numbers(torch.stack([part.median() for part in parts]))
    found = []
    for part in parts:
        entries, middle = part.detach().numpy().ravel(), (part.numel() - 1) // 2
        found.append(float(np.partition(entries, middle)[middle]))
    return found


def places(mask: Tensor) -> Tensor:
    """List where `mask`, of shape `(n,)`, is true, shape `(m,)`: the host has to know m."""
    return mask.nonzero().flatten()


def distinct(values: Tensor) -> tuple[Tensor, Tensor]:
    """List the different entries of `values`, shape `(m,)`, and for each entry which one of them it is."""
    different, index = values.unique(return_inverse=True)
    return different, index


def normal_numbers(like: Tensor, shape: tuple[int, ...], seed: int) -> Tensor:
    """Draw standard normal numbers on the host, so that a seed means the same on every device.

    They get the dtype and the device of `like`.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device)


def free_memory(device: torch.device) -> int:
    """Return how many bytes are free where the arithmetic runs."""
    if device.type == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available) + kept_bytes()
