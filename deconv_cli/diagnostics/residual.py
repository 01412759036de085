"""What the estimate leaves unexplained, altogether and by distance from the edge."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.diagnostics.edge_bands import EdgeBands
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import accumulation_dtype
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


def summarize_residual(residual: Tensor, data: Tensor, n_axes: int = 2) -> ResidualSummary:
    """Measure a residual against the data it belongs to.

    Args:
        residual: y − Ax̂, shape `(*batch, C, *space)`.
        data: y, less the bias if there is one; of the same shape.
        n_axes: how many axes of space there are.
    """
    of_residual, of_data = _square_sums(residual, n_axes), _square_sums(data, n_axes)
    total = synchronize.as_number(of_residual.sum())
    return ResidualSummary(
        relative=_ratio(total, synchronize.as_number(of_data.sum())),
        absolute=total**0.5,
        root_mean_square=(total / residual.numel()) ** 0.5,
        per_channel=tuple(map(_ratio, synchronize.as_numbers(of_residual), synchronize.as_numbers(of_data))),
    )


def border_profile(residual: Tensor, kernel_size: Size) -> tuple[BorderBand, ...]:
    """Follow the residual from the edge inwards.

    Args:
        residual: y − Ax̂, shape `(*batch, C, *space)`.
        kernel_size: taps along each axis of space, which set how deep the profile goes.

    Returns:
        One band a pixel of distance, starting with the edge. The innermost band gathers everything deeper.
    """
    depth = max(PROFILE_KERNEL_WIDTHS * max(kernel_size), MIN_PROFILE_DEPTH)
    bands = EdgeBands(tuple(residual.shape[-len(kernel_size) :]), depth, residual.device)
    rms = synchronize.as_numbers(bands.mean_square(residual).sqrt())
    return tuple(BorderBand(distance, value) for distance, value in enumerate(rms))


def _square_sums(images: Tensor, n_axes: int) -> Tensor:
    """Add up the squares of each channel, shape `(C,)`."""
    axes = tuple(axis for axis in range(images.ndim) if axis != images.ndim - n_axes - 1)
    return torch.linalg.vector_norm(images, dim=axes, dtype=accumulation_dtype(images)).square()


def _ratio(squared_part: float, squared_whole: float) -> float:
    return (squared_part / squared_whole) ** 0.5 if squared_whole > 0 else 0.0
