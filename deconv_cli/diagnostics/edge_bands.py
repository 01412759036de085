"""Pixels grouped by their distance from the nearest edge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from deconv_cli.operators.axes import accumulation_dtype
from deconv_cli.vocabulary import Size


def edge_distance(size: Size, part: Sequence[tuple[int, int]], device: torch.device | str = "cpu") -> Tensor:
    """Count the pixels between each pixel of a part of a picture and the picture's nearest edge, 0 on the edge itself.

    Args:
        size: pixels of the whole along each axis.
        part: where the part begins and ends along each axis.
        device: where the pixels are.
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
    """Bands of pixels at the same distance from the nearest edge; the innermost one gathers everything deeper.

    Args:
        size: pixels along each axis.
        depth: how many bands are wanted; there are fewer where the image is not so deep.
        device: where the pixels are.

    Attributes:
        depth: how many bands there are.
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
        """How many pixels each band has, shape `(depth,)`."""
        return torch.tensor(band_counts(self._size, self.depth), device=self._device)

    def mean_square(self, values: Tensor) -> Tensor:
        """Average the squares of values `(*batch, *size)` likewise, whatever the size of the squares."""
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
        """Add up values of shape `size` over each band; the innermost by itself, which has most of the pixels."""
        sums = by_pixel.new_zeros(self.depth)
        for part, distance in self._rim:
            sums.scatter_add_(0, distance, by_pixel[part].flatten())
        sums[-1] += by_pixel[_slices(self._inside)].sum()
        return sums


def _slices(part: Sequence[tuple[int, int]]) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in part)
