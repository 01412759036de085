"""Frequencies of a torus by their size and direction, in any number of axes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deconv_cli.vocabulary import Size


def frequency_grid(torus: Size, like: Tensor) -> Tensor:
    """Tabulate the frequencies of `torch.fft.rfftn` in radians a pixel, in the precision and on the device of `like`.

    Returns:
        Shape `(*torus[:-1], torus[-1] // 2 + 1, n_axes)`, the axes of space in their order.
    """
    last = len(torus) - 1
    lines = [
        (torch.fft.rfftfreq if axis == last else torch.fft.fftfreq)(n, dtype=like.dtype, device=like.device)
        for axis, n in enumerate(torus)
    ]
    return 2 * math.pi * torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1)


def directional_functions(units: Tensor) -> list[Tensor]:
    """Evaluate the constant and the even functions of second degree of a direction.

    Those are cos 2φ and sin 2φ of a direction in a plane, five in space, and none on a line, where there are no
    directions.

    Args:
        units: unit vectors, shape `(*, n_axes)`, or zero where there is no direction.

    Returns:
        One for each function, shape `(*,)`.
    """
    n_axes = units.shape[-1]
    parts = units.unbind(-1)
    last = parts[-1]
    pure = [last.square() - part.square() for part in parts[:-1]]
    mixed = [2 * parts[i] * parts[j] for i in range(n_axes) for j in range(i + 1, n_axes)]
    return [torch.ones_like(last), *pure, *mixed]
