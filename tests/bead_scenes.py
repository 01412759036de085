"""Pictures and stacks of beads under a point-spread function that is known."""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian(shape, center, sigma) -> Tensor:
    """A Gaussian of height 1."""
    found = torch.ones((), dtype=torch.float64)
    for axis, (n, at, width) in enumerate(zip(shape, center, sigma, strict=True)):
        line = torch.exp(-0.5 * ((torch.arange(n, dtype=torch.float64) - at) / width) ** 2)
        found = found * line.reshape(-1, *[1] * (len(shape) - 1 - axis))
    return found


def point(shape, center, sigma) -> Tensor:
    """A point-spread function with a halo and a height of about 1."""
    return gaussian(shape, center, sigma) + 0.15 * gaussian(shape, center, [2.2 * width for width in sigma])


def scene(shape, sigma, pitch, *, counts, background=20.0, seed=0) -> Tensor:
    """Beads of different brightness near the nodes of a grid, with Poisson noise on a background."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> float:
        return float(torch.rand((), generator=generator, dtype=torch.float64))

    light = torch.full(shape, background, dtype=torch.float64)
    for i in range(shape[-2] // pitch):
        for j in range(shape[-1] // pitch):
            center = [(i + 0.5) * pitch + 4 * draw() - 2, (j + 0.5) * pitch + 4 * draw() - 2]
            if len(shape) == 3:
                center = [shape[0] / 2 - 0.5 + 3 * draw() - 1.5, *center]
            light += counts * (0.5 + draw()) * point(shape, center, sigma)
    return torch.poisson(light, generator=generator)
