"""A residual in numbers: of all samples, and by distance from the edge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import accumulation_dtype
from deconv_cli.vocabulary import Size

# The profile goes this many kernel widths inwards, and at least this many pixels.
PROFILE_KERNEL_WIDTHS = 2
MIN_PROFILE_DEPTH = 16


def edge_distance(size: Size, part: Sequence[tuple[int, int]], device: torch.device | str = "cpu") -> Tensor:
    """Count the pixels between each pixel of a part of a picture and the picture's nearest edge, 0 on the edge itself.

    The picture has `size` pixels; the part begins and ends at the given places along each axis.
    """
    places = [torch.arange(start, stop, device=device) for start, stop in part]
    distance, *others = [torch.minimum(place, n - 1 - place) for place, n in zip(places, size, strict=True)]
    for to_end in others:
        distance = torch.minimum(distance[..., None], to_end)
    return distance


def band_counts(size: Size, n_bands: int) -> list[int]:
    """Count the pixels at each distance from the nearest edge; the last band has all that are deeper."""
    within = [math.prod(max(n - 2 * depth, 0) for n in size) for depth in range(n_bands)]
    return [n - deeper for n, deeper in zip(within, [*within[1:], 0], strict=True)]


class EdgeBands:
    """Bands of pixels at the same distance from the nearest edge; the innermost one has all that are deeper.

    There are `depth` of them, or fewer in a small image.
    """

    def __init__(self, size: Size, depth: int, device: torch.device) -> None:
        self.depth = min(depth, (min(size) + 1) // 2)
        self._size, self._device = size, device
        outer, rim = self.depth - 1, []
        self._inside = [(outer, length - outer) for length in size]
        for axis, length in enumerate(size):
            ahead, behind = self._inside[:axis], [(0, n) for n in size[axis + 1 :]]
            rim += [[*ahead, ends, *behind] for ends in ((0, outer), (length - outer, length))]
        self._rim = [(_slices(part), edge_distance(size, part, device).flatten()) for part in rim]

    @cached_property
    def distance(self) -> Tensor:
        """Pixels between each pixel and the nearest edge, 0 on the edge itself, shape `size`."""
        return edge_distance(self._size, [(0, length) for length in self._size], self._device)

    @cached_property
    def count(self) -> Tensor:
        """Number of pixels of each band, shape `(depth,)`."""
        return torch.tensor(band_counts(self._size, self.depth), device=self._device)

    def mean_square(self, values: Tensor) -> Tensor:
        """Average the squares of values `(*batch, *size)` over each band and the batch, in double precision."""
        first, *others = values.reshape(-1, *self._size)
        # A norm over the axis of the images takes eight times as long.
        by_pixel = first.to(accumulation_dtype(values), copy=True).square_()
        for image in others:
            wide = image.to(by_pixel.dtype)
            by_pixel.addcmul_(wide, wide)
        return self._sums(by_pixel) / ((1 + len(others)) * self.count)

    def mean(self, values: Tensor) -> Tensor:
        """Average values `(*batch, *size)` over each band and the batch, in double precision where it exists."""
        dtype = accumulation_dtype(values)
        return self._sums(values.reshape(-1, *self._size).mean(dim=0, dtype=dtype)) / self.count

    def _sums(self, by_pixel: Tensor) -> Tensor:
        """Sum values of shape `size` over each band; most of the pixels are in the innermost one."""
        sums = by_pixel.new_zeros(self.depth)
        for part, distance in self._rim:
            sums.scatter_add_(0, distance, by_pixel[part].flatten())
        sums[-1] += by_pixel[_slices(self._inside)].sum()
        return sums


def _slices(part: Sequence[tuple[int, int]]) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in part)


@dataclass(frozen=True)
class ResidualSummary:
    """The residual y − Ax̂ in numbers.

    ‖y − Ax̂‖ / ‖y‖ of all samples and of each output channel; ‖y − Ax̂‖ and its root mean square, in the units of the
    samples.
    """

    relative: float
    absolute: float
    root_mean_square: float
    per_channel: tuple[float, ...]


@dataclass(frozen=True)
class BorderBand:
    """The root mean square of the residual over the output pixels at one distance, in pixels, from the nearest edge."""

    distance: int
    residual_rms: float


def summarize_residual(residual: Tensor, data: Tensor, n_axes: int = 2) -> ResidualSummary:
    """Compare a residual with its data less the bias, both of shape `(*batch, C, *space)`."""
    of_residual, of_data = _square_sums(residual, n_axes), _square_sums(data, n_axes)
    total = synchronize.as_number(of_residual.sum())
    return ResidualSummary(
        relative=_ratio(total, synchronize.as_number(of_data.sum())),
        absolute=total**0.5,
        root_mean_square=(total / residual.numel()) ** 0.5,
        per_channel=tuple(map(_ratio, synchronize.as_numbers(of_residual), synchronize.as_numbers(of_data))),
    )


def border_profile(residual: Tensor, kernel_size: Size) -> tuple[BorderBand, ...]:
    """Follow a residual `(*batch, C, *space)` from the edge inwards, a band a pixel, some kernel widths deep."""
    depth = max(PROFILE_KERNEL_WIDTHS * max(kernel_size), MIN_PROFILE_DEPTH)
    bands = EdgeBands(tuple(residual.shape[-len(kernel_size) :]), depth, residual.device)
    rms = synchronize.as_numbers(bands.mean_square(residual).sqrt())
    return tuple(BorderBand(distance, value) for distance, value in enumerate(rms))


def _square_sums(images: Tensor, n_axes: int) -> Tensor:
    """Sum the squares of each channel, shape `(C,)`."""
    axes = tuple(axis for axis in range(images.ndim) if axis != images.ndim - n_axes - 1)
    return torch.linalg.vector_norm(images, dim=axes, dtype=accumulation_dtype(images)).square()


def _ratio(squared_part: float, squared_whole: float) -> float:
    return (squared_part / squared_whole) ** 0.5 if squared_whole > 0 else 0.0
