"""A small denoiser that learned from photographs, as the proximal map of a prior.

A U-Net on pixels that are unshuffled by two, without any bias, that takes the noise level as one more channel (Zhang et
al., FFDNet, IEEE TIP 2018; Mohan et al., Robust and interpretable blind image denoising via bias-free convolutional
neural networks, ICLR 2020). So D(ax, aσ) = aD(x, σ) for a > 0: the unit of the samples does not matter.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

SHUFFLE = 2
CHANNELS = 3
N_LEVELS = 2
WINDOW = 9
"""Pixels along each axis over which variances are averaged."""


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

    def forward(self, x: Tensor, levels: Tensor) -> Tensor:
        """Remove noise.

        Args:
            x: pictures of any range, shape `(B, 3, H, W)`.
            levels: in the same unit, shape `(B, 2, H, W)`: the standard deviation of the noise, and how far the data
                are from the last estimate nearby; zero where there is none.

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
    return functional.avg_pool2d(padded, WINDOW, stride=1)


def _blocks(width: int, n: int) -> nn.Sequential:
    return nn.Sequential(*(Residual(width) for _ in range(n)))
