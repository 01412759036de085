"""Pixels grouped by their distance from the nearest edge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from deconv_cli.solvers.norms import accumulation_dtype
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
        distance: pixels between each pixel and the nearest edge, 0 on the edge itself, shape `size`.
        index: the band of each pixel, shape `size`.
    """

    def __init__(self, size: Size, depth: int, device: torch.device) -> None:
        self.depth = min(depth, (min(size) + 1) // 2)
        self.distance = edge_distance(size, [(0, length) for length in size], device)
        self.index = self.distance.clamp_max(self.depth - 1)

    @cached_property
    def count(self) -> Tensor:
        """How many pixels each band has, shape `(depth,)`."""
        return torch.tensor(band_counts(self.index.shape, self.depth), device=self.index.device)

    def mean_square(self, values: Tensor) -> Tensor:
        """Average the squares of values `(*batch, *size)` likewise, whatever the size of the squares."""
        images = values.reshape(-1, *self.index.shape)
        by_pixel = torch.linalg.vector_norm(images, dim=0, dtype=accumulation_dtype(values)).square_()
        return self._sums(by_pixel) / (len(images) * self.count)

    def mean(self, values: Tensor) -> Tensor:
        """Average values `(*batch, *size)` over each band and the batch, in double precision where it exists."""
        dtype = accumulation_dtype(values)
        return self._sums(values.reshape(-1, *self.index.shape).mean(dim=0, dtype=dtype)) / self.count

    def _sums(self, by_pixel: Tensor) -> Tensor:
        """Add up values of shape `size` over each band."""
        return by_pixel.new_zeros(self.depth).scatter_add(0, self.index.flatten(), by_pixel.flatten())
