"""Frequencies along the edge of an image, at each of which what happens across the edge is a problem of one axis."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deconv_cli.vocabulary import Size

# Multiples of the golden section modulo one are as evenly spread as any number of points can be.
GOLDEN_SECTION = (math.sqrt(5) - 1) / 2


def move_ahead(taps: Tensor, axis: int) -> Tensor:
    """Put one axis of space of taps `(C_out, C_in, *k)` ahead, and join the others: `(C_out, C_in, k, n_edge)`."""
    ahead = taps.movedim(2 + axis, 2)
    return ahead.reshape(*ahead.shape[:3], -1)


def edge_angles(n_lines: int, n_axes: int, like: Tensor) -> Tensor:
    """Spread angles evenly over half of the frequencies along an edge; by symmetry the other half is like it.

    They lie between the frequencies where symmetric kernels have their zeros.

    Args:
        n_lines: how many.
        n_axes: axes along the edge: none of a signal, one of a picture, two of a stack.
        like: a tensor of the dtype and on the device of the angles.

    Returns:
        Shape `(n_lines, n_axes)`, from 0 to π along the first axis and to 2π along the second.
    """
    steps = torch.arange(n_lines, dtype=like.dtype, device=like.device) + 0.5
    along = [steps * (math.pi / n_lines), (steps * GOLDEN_SECTION % 1) * (2 * math.pi)]
    return torch.stack(along, dim=-1)[:, :n_axes]


def edge_waves(angles: Tensor, sizes: Size) -> Tensor:
    """Tabulate what taps along an edge contribute at angles `(n_lines, n_axes)`.

    Args:
        angles: see above.
        sizes: taps along each axis of the edge.

    Returns:
        Complex, shape `(n_lines, prod(sizes))`.
    """
    phase = angles.new_zeros(len(angles), 1)
    for angle, n_taps in zip(angles.unbind(-1), sizes, strict=True):
        steps = angle[:, None] * torch.arange(n_taps, device=angles.device)
        phase = (phase[:, :, None] + steps[:, None]).flatten(1)
    return torch.polar(torch.ones_like(phase), phase)
