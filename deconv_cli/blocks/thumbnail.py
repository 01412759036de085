"""A small picture of the whole: each pixel averages many, and the block that holds the first of them makes it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.blocks.block_grid import Interval
from deconv_cli.operators.axes import crop
from deconv_cli.vocabulary import Size

MAX_SIDES = {1: 2048, 2: 512, 3: 128}
"""Sides of a thumbnail in pixels, by the axes of space."""
MAX_PLANES = 48
N_CHANNELS = 3
"""Channels that are kept: the colors, or the first ones."""


@dataclass(frozen=True)
class ThumbnailPart:
    """The pixels that one block adds to a thumbnail: float32 in base64, of shape `(C, *size)`, from `start` on."""

    name: str
    start: tuple[int, ...]
    shape: tuple[int, ...]
    samples: str


@dataclass(frozen=True)
class Thumbnail:
    """The layout of a thumbnail: the size of the whole, and the pixels of the whole that make one, along each axis."""

    size: Size
    steps: Size

    @classmethod
    def of(cls, size: Size) -> Thumbnail:
        """Choose the steps: the same along rows and columns, smaller ones along planes."""
        step = -(-max(size[-2:]) // MAX_SIDES[len(size)])
        return cls(size, (*(-(-n // MAX_PLANES) for n in size[:-2]), *[step] * len(size[-2:])))

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
        """Average a part of the whole, shape `(C, *size)`; return `None` if no pixel of the thumbnail begins in it."""
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
        """Join the parts of this name, shape `(C, *n_pixels)`; `None` if there are none."""
        whole: Tensor | None = None
        for part in parts:
            if part.name == name:
                whole = torch.zeros(part.shape[0], *self.n_pixels) if whole is None else whole
                values = np.frombuffer(base64.b64decode(part.samples), "<f4").reshape(part.shape)
                crop(whole, part.start, part.shape[1:]).copy_(torch.from_numpy(values.copy()))
        return whole
