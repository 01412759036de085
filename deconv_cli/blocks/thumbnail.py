"""A small picture of the whole: each of its pixels is the mean of many, and made by the block that holds the first."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.blocks.axis_cut import Interval
from deconv_cli.operators.axes import crop
from deconv_cli.vocabulary import Size

MAX_SIDES = {1: 2048, 2: 512, 3: 128}
"""Of a thumbnail, in pixels, by the axes of space."""
MAX_PLANES = 48
N_CHANNELS = 3
"""Channels that are kept: the colors, or the first ones."""


@dataclass(frozen=True)
class ThumbnailPart:
    """What one block gives to a thumbnail; JSON can hold it.

    Attributes:
        name: of the thumbnail.
        start: place of its first pixel in the thumbnail, along each axis of space.
        shape: channels and pixels.
        samples: float32, in base64.
    """

    name: str
    start: Sequence[int]
    shape: Sequence[int]
    samples: str

    @property
    def values(self) -> Tensor:
        """The samples, shape `(C, *size)`."""
        stored = np.frombuffer(base64.b64decode(self.samples), "<f4")
        return torch.from_numpy(stored.reshape(self.shape).copy())


@dataclass(frozen=True)
class Thumbnail:
    """The pixels of a thumbnail.

    Attributes:
        size: of the whole, along each axis of space.
        steps: pixels of the whole that make one, along each axis.
    """

    size: Size
    steps: Size

    @property
    def n_pixels(self) -> Size:
        """Its own size."""
        return tuple(-(-n // step) for n, step in zip(self.size, self.steps, strict=True))

    @property
    def distance(self) -> Tensor:
        """Pixels of the whole between the middle of each of its own and the nearest edge."""
        middles = [torch.arange(n) * step + step // 2 for n, step in zip(self.n_pixels, self.steps, strict=True)]
        to_end = [
            torch.minimum(middle, n - 1 - middle).clamp_min(0) for middle, n in zip(middles, self.size, strict=True)
        ]
        return torch.stack(torch.meshgrid(*to_end, indexing="ij")).amin(0)

    def part(self, name: str, values: Tensor, at: Sequence[Interval]) -> ThumbnailPart | None:
        """Average a part of the whole; `None` where none of the thumbnail's pixels begins in it.

        Args:
            name: of the thumbnail.
            values: shape `(C, *size)`.
            at: where they lie, along each axis of space.
        """
        begins = tuple(-(-start // step) for (start, _), step in zip(at, self.steps, strict=True))
        firsts = tuple(begin * step for begin, step in zip(begins, self.steps, strict=True))
        sizes = tuple(stop - first for (_, stop), first in zip(at, firsts, strict=True))
        if min(sizes) <= 0:
            return None
        kept = crop(values, tuple(first - start for first, (start, _) in zip(firsts, at, strict=True)), sizes)
        pool = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[len(sizes) - 1]
        means = pool(kept[None].float(), self.steps, ceil_mode=True)[0].cpu().numpy().astype("<f4")
        return ThumbnailPart(name, begins, means.shape, base64.b64encode(means.tobytes()).decode("ascii"))

    def assemble(self, name: str, parts: Iterable[ThumbnailPart]) -> Tensor | None:
        """Put parts together, shape `(C, *n_pixels)`; `None` where there are none of this name."""
        whole: Tensor | None = None
        for part in parts:
            if part.name != name:
                continue
            if whole is None:
                whole = torch.zeros(part.shape[0], *self.n_pixels)
            crop(whole, tuple(part.start), tuple(part.shape[1:])).copy_(part.values)
        return whole


def choose_steps(size: Size) -> Size:
    """Choose how many pixels along each axis make one; as many along rows and columns, fewer along planes."""
    largest = MAX_SIDES[len(size)]
    step = -(-max(size[-2:]) // largest)
    return (*(-(-n // MAX_PLANES) for n in size[:-2]), *[step] * len(size[-2:]))
