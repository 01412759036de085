"""Where single beads are in a picture or a stack, and which of them are fit to be measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.operators.axes import crop
from deconv_cli.operators.convolution import CONVOLUTIONS
from deconv_cli.vocabulary import Size

THRESHOLD = 8.0
"""A bead stands so many standard deviations of the smoothed noise above the background."""
RING = 0.2
"""A maximum beside one that is so much brighter is a ring of it, and no bead."""
CLIP, N_CLIPS = 3.0, 8
NEAR = 1.25
"""Beads are too close to one another within so many half widths of the window."""


@dataclass(frozen=True)
class BeadCensus:
    """What became of the maxima that stand out of the background.

    Attributes:
        used: places of the beads that are fit, shape `(n, n_axes)`, whole numbers.
        n_crowded: beads with another one too close.
        n_saturated: beads with a sample that is full.
        n_at_edge: beads whose window reaches out of the picture.
        is_background: samples far from every bead, of the shape of the picture.
    """

    used: Tensor
    n_crowded: int
    n_saturated: int
    n_at_edge: int
    is_background: Tensor


def clipped_mean(values: Tensor) -> tuple[float, float]:
    """Give mean and standard deviation of values less those that stand out, iteratively."""
    kept = values.flatten()
    for _ in range(N_CLIPS):
        middle, spread = kept.median(), kept.std()
        inside = (kept - middle).abs() <= CLIP * spread
        if bool(inside.all()):
            break
        kept = kept[inside]
    return float(kept.mean()), float(kept.std()) if len(kept) > 1 else 0.0


def smooth(image: Tensor) -> Tensor:
    """Smooth by (1, 4, 6, 4, 1)/16 along each axis, with mirrored edges."""
    taps = image.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    found = image
    for axis in range(image.ndim):
        lines = found.movedim(axis, -1)
        flat = lines.reshape(-1, 1, lines.shape[-1])
        wide = functional.pad(flat, (2, 2), mode="replicate")
        found = CONVOLUTIONS[1](wide, taps[None, None]).reshape(lines.shape).movedim(-1, axis)
    return found


def find_maxima(image: Tensor) -> tuple[Tensor, Tensor]:
    """Find what stands out of the background; gives places `(n, n_axes)` and heights, the highest first."""
    level, noise = clipped_mean(image)
    n_axes = image.ndim
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[n_axes - 1]
    highest = pool(image[None, None], 3, stride=1, padding=1)[0, 0]
    places = ((image == highest) & (image > level + THRESHOLD * max(noise, 1e-12))).nonzero()
    heights = image[tuple(places.T)] - level
    order = heights.argsort(descending=True)
    return places[order], heights[order]


def take_census(image: Tensor, size: Size, white: float | None) -> BeadCensus:
    """Sort out the maxima of a picture.

    Args:
        image: shape `(*size)`.
        size: of the window around each bead, odd.
        white: the value of a full sample; `None` where there is none.
    """
    places, heights = find_maxima(smooth(image))
    half = torch.tensor([n // 2 for n in size])
    distance = (places[:, None] - places[None]).abs()
    is_near = (distance <= NEAR * half).all(-1) & ~torch.eye(len(places), dtype=torch.bool)
    is_ring = (is_near & (heights[:, None] < RING * heights[None])).any(1)
    is_crowded = (is_near & ~is_ring[None]).any(1) & ~is_ring
    shape = torch.tensor(image.shape)
    is_at_edge = ((places < half + 1) | (places > shape - half - 2)).any(1) & ~is_ring
    is_full = torch.zeros(len(places), dtype=torch.bool)
    if white is not None:
        is_full = torch.tensor(
            [bool((_around(image, place, half) >= white).any()) for place in places], dtype=torch.bool
        )
    is_full &= ~is_ring
    is_used = ~(is_ring | is_crowded | is_full | is_at_edge)
    return BeadCensus(
        used=places[is_used],
        n_crowded=int((is_crowded & ~is_full).sum()),
        n_saturated=int(is_full.sum()),
        n_at_edge=int((is_at_edge & ~is_crowded & ~is_full).sum()),
        is_background=_far_from(places, half, image),
    )


def _around(image: Tensor, place: Tensor, half: Tensor) -> Tensor:
    return image[tuple(slice(max(int(p - h), 0), int(p + h) + 1) for p, h in zip(place, half, strict=True))]


def _far_from(places: Tensor, half: Tensor, image: Tensor) -> Tensor:
    is_far = torch.ones(image.shape, dtype=torch.bool)
    for place in places:
        is_far[tuple(slice(max(int(p - h), 0), int(p + h) + 1) for p, h in zip(place, half, strict=True))] = False
    return is_far


def local_backgrounds(image: Tensor, census: BeadCensus, size: Size) -> Tensor:
    """Estimate the background of each bead from the samples around its window that belong to no bead, shape `(n,)`."""
    everywhere = image[census.is_background]
    level = clipped_mean(everywhere)[0] if len(everywhere) else float(image.min())
    least = max(64, max(size) ** 2 // 4)
    found = []
    for place in census.used:
        half = torch.tensor([3 * (n // 2) for n in size])
        near = _around(image, place, half)[_around(census.is_background, place, half)]
        found.append(clipped_mean(near)[0] if len(near) >= least else level)
    return torch.tensor(found, dtype=image.dtype)


def cut_windows(image: Tensor, places: Tensor, size: Size) -> Tensor:
    """Cut windows of a size around places, shape `(n, *size)`."""
    return torch.stack(
        [crop(image, tuple(int(p) - n // 2 for p, n in zip(place, size, strict=True)), size) for place in places]
    )
