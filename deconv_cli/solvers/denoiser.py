"""A small denoiser that learned from photographs, as the proximal map of a prior.

A U-Net on pixels that are unshuffled by two, without any bias, that takes the noise level as one more channel (Zhang et
al., FFDNet, IEEE TIP 2018; Mohan et al., Robust and interpretable blind image denoising via bias-free convolutional
neural networks, ICLR 2020). So D(ax, aσ) = aD(x, σ) for a > 0: the unit of the samples does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from deconv_cli.operators.axes import crop
from deconv_cli.vocabulary import Size

SHUFFLE = 2
CHANNELS = 3
N_LEVELS = 2
WINDOW = 9
"""Pixels along each axis over which variances are averaged."""
N_FEATURES = 9
"""Feature maps of the finest resolution that are held at once."""
TILE = 1024
"""Pixels along each axis that are denoised at once, without those around them: a large picture takes little memory."""


class Tile(NamedTuple):
    """A part of a picture, for indexing it: without and with the pixels around it, and rows and columns to fill up."""

    inner: tuple[Any, ...]
    outer: tuple[Any, ...]
    filled: tuple[int, ...]


class Residual(nn.Module):
    """Two convolutions with a rectifier between them, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it; shape `(B, width, h, w)` in and out."""
        return x + self.second(functional.relu(self.first(x)))


class Denoiser(nn.Module):
    """Removes noise of a known level from pictures in three channels.

    Args:
        widths: channels at each resolution, the finest first.
        depths: residual blocks at each resolution, on the way down and again on the way up.
    """

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...]) -> None:
        super().__init__()
        self.widths, self.depths = widths, depths
        n_samples = CHANNELS * SHUFFLE**2
        pairs = list(pairwise(widths))
        self.head = nn.Conv2d(n_samples + N_LEVELS, widths[0], 3, padding=1, bias=False)
        self.tail = nn.Conv2d(widths[0], n_samples, 3, padding=1, bias=False)
        self.fine = nn.ModuleList(_blocks(w, n) for w, n in zip(widths, depths, strict=True))
        self.back = nn.ModuleList(_blocks(w, n) for w, n in zip(widths[:-1], depths, strict=False))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2, bias=False) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2, bias=False) for a, b in pairs)

    @property
    def multiple(self) -> int:
        """Sides of pictures are padded to a multiple of this."""
        return SHUFFLE << len(self.down)

    @property
    def reach(self) -> int:
        """Pixels around a tile that decide what becomes of it, a multiple of `multiple`."""
        *others, coarsest = self.depths
        reach = 2 + 2 * coarsest * 2 ** len(others) + sum(4 * n * 2**level for level, n in enumerate(others))
        return self.multiple * math.ceil(SHUFFLE * reach / self.multiple + 1)

    def tile_bytes(self, size: Size) -> int:
        """Estimate the memory that a tile of a picture takes."""
        n_pixels = math.prod(min(n, TILE + 2 * self.reach) for n in size)
        return N_FEATURES * 4 * n_pixels * self.widths[0] // SHUFFLE**2

    def tiles(self, size: Size, origin: Sequence[int] = (0, 0)) -> Iterator[Tile]:
        """Cut a picture into tiles.

        Args:
            size: of the picture.
            origin: the place of its first pixel in the picture that it is cut from. Places differ in what the network
                makes of them, unless they are a multiple of `multiple` apart.
        """
        starts = [place % self.multiple for place in origin]
        step = self.multiple * math.ceil(TILE / self.multiple)
        for corner in product(*(range(-start, n, step) for start, n in zip(starts, size, strict=True))):
            inner = tuple(slice(max(at, 0), at + step) for at in corner)
            outer = tuple(slice(max(at - self.reach, 0), at + step + self.reach) for at in corner)
            # A tile at the edge begins in the middle of a cell of the grid: fill the cell.
            filled = tuple(0 if side.start else start for side, start in zip(outer, starts, strict=True))
            yield Tile((..., *inner), (..., *outer), filled)

    def in_tile(self, x: Tensor, levels: Tensor, tile: Tile) -> Tensor:
        """Remove the noise of one tile; gives what `forward` gives there of the whole.

        Args:
            x: as for `forward`, or gray pictures of one channel.
            levels: as for `forward`.
            tile: one of `tiles`.
        """
        target, parts = x[tile.inner], [part[tile.outer] for part in (x, levels)]
        above, before = tile.filled
        if above or before:
            parts = [functional.pad(part, (before, 0, above, 0), mode="replicate") for part in parts]
        first = tuple(
            n + i.start - o.start for n, i, o in zip(tile.filled, tile.inner[1:], tile.outer[1:], strict=True)
        )
        cleaned = crop(self(parts[0].expand(-1, CHANNELS, -1, -1), parts[1]), first, tuple(target.shape[-2:]))
        return cleaned if x.shape[1] == CHANNELS else cleaned.mean(dim=1, keepdim=True)

    def forward(self, x: Tensor, levels: Tensor) -> Tensor:
        """Remove noise.

        Args:
            x: pictures of any range, shape `(B, 3, H, W)`.
            levels: in the same unit, shape `(B, 2, H, W)`: the standard deviation of the noise, and the distance of
                the data from the last estimate nearby; zero before the first estimate.

        Returns:
            The pictures without noise, as `x`.
        """
        height, width = x.shape[-2:]
        margins = (0, -width % self.multiple, 0, -height % self.multiple)
        padded = torch.cat([x, levels], dim=1)
        if any(margins):
            padded = functional.pad(padded, margins, mode="replicate")
        samples = functional.pixel_unshuffle(padded[:, :CHANNELS], SHUFFLE)
        level = functional.avg_pool2d(padded[:, CHANNELS:], SHUFFLE)
        inputs = torch.cat([samples, level], dim=1).contiguous(memory_format=torch.channels_last)
        found = functional.pixel_shuffle(self._noise(inputs), SHUFFLE)
        return x - found[..., :height, :width]

    def _noise(self, h: Tensor) -> Tensor:
        h, kept = self.head(h), []
        for level, blocks in enumerate(self.fine):
            h = blocks(h)
            if level < len(self.down):
                kept.append(h)
                h = self.down[level](h)
        for level in reversed(range(len(self.down))):
            h = self.back[level](self.up[level](h) + kept[level])
        return self.tail(h)


def local_mean(picture: Tensor) -> Tensor:
    """Average over a square window around each pixel; the outermost pixels are repeated. Shape `(B, C, H, W)`."""
    padded = functional.pad(picture, (WINDOW // 2,) * 4, mode="replicate")
    return functional.avg_pool2d(functional.avg_pool2d(padded, (WINDOW, 1), stride=1), (1, WINDOW), stride=1)


def _blocks(width: int, n: int) -> nn.Sequential:
    return nn.Sequential(*(Residual(width) for _ in range(n)))
