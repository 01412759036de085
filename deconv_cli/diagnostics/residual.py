"""What the estimate leaves unexplained, altogether and by distance from the edge."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.solvers.norms import accumulation_dtype
from deconv_cli.vocabulary import Size

# The profile goes this many kernel widths inwards, and at least this many pixels.
PROFILE_KERNEL_WIDTHS = 2
MIN_PROFILE_DEPTH = 16


@dataclass(frozen=True)
class ResidualSummary:
    """The residual y − Ax̂ in numbers.

    Attributes:
        relative: ‖y − Ax̂‖ / ‖y‖ over everything.
        absolute: ‖y − Ax̂‖, in the units of the samples.
        root_mean_square: the same for a single sample.
        per_channel: ‖y − Ax̂‖ / ‖y‖ for each output channel.
    """

    relative: float
    absolute: float
    root_mean_square: float
    per_channel: tuple[float, ...]


@dataclass(frozen=True)
class BorderBand:
    """The residual over the output pixels at one distance from the nearest edge.

    Attributes:
        distance: pixels to the nearest edge; 0 on the edge itself.
        residual_rms: root mean square of the residual there, in the units of the samples.
    """

    distance: int
    residual_rms: float


def summarize_residual(residual: Tensor, data: Tensor) -> ResidualSummary:
    """Measure a residual against the data it belongs to.

    Args:
        residual: y − Ax̂, shape `(*batch, C, H, W)`.
        data: y, less the bias if there is one; of the same shape.
    """
    axes = tuple(axis for axis in range(residual.ndim) if axis != residual.ndim - 3)
    squared_residual = _sum_of_squares(residual, axes)
    squared_data = _sum_of_squares(data, axes)
    total = synchronize.as_number(squared_residual.sum())
    return ResidualSummary(
        relative=_ratio(total, synchronize.as_number(squared_data.sum())),
        absolute=total**0.5,
        root_mean_square=(total / residual.numel()) ** 0.5,
        per_channel=tuple(map(_ratio, synchronize.as_numbers(squared_residual), synchronize.as_numbers(squared_data))),
    )


def border_profile(residual: Tensor, kernel_size: tuple[int, ...]) -> tuple[BorderBand, ...]:
    """Follow the residual from the edge inwards.

    Args:
        residual: y − Ax̂, shape `(*batch, C, H, W)`.
        kernel_size: height and width of the kernel, which sets how deep the profile goes.

    Returns:
        One band a pixel of distance, starting with the edge. The innermost band gathers everything deeper.
    """
    height, width = residual.shape[-2:]
    by_pixel = residual.square().flatten(end_dim=-3).mean(dim=0, dtype=accumulation_dtype(residual))
    distance = distance_from_edge((height, width), residual.device)
    depth = min(max(PROFILE_KERNEL_WIDTHS * max(kernel_size), MIN_PROFILE_DEPTH), (min(height, width) + 1) // 2)
    band = distance.clamp_max(depth - 1).flatten()
    total = by_pixel.new_zeros(depth).index_add(0, band, by_pixel.flatten())
    n_pixels = by_pixel.new_zeros(depth).index_add(0, band, torch.ones_like(by_pixel).flatten())
    rms = (total / n_pixels).sqrt()
    return tuple(BorderBand(index, value) for index, value in enumerate(synchronize.as_numbers(rms)))


def distance_from_edge(size: Size, device: torch.device) -> Tensor:
    """Count the pixels between each pixel of a picture and the nearest edge, shape `(H, W)`; 0 on the edge itself."""
    return torch.minimum(_distance_to_end(size[0], device)[:, None], _distance_to_end(size[1], device))


def _distance_to_end(length: int, device: torch.device) -> Tensor:
    index = torch.arange(length, device=device)
    return torch.minimum(index, length - 1 - index)


def _sum_of_squares(a: Tensor, axes: tuple[int, ...]) -> Tensor:
    return a.square().sum(dim=axes, dtype=accumulation_dtype(a))


def _ratio(squared_part: float, squared_whole: float) -> float:
    return (squared_part / squared_whole) ** 0.5 if squared_whole > 0 else 0.0
