"""Find single beads in a picture or a stack, and choose those that can be measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.measured_light import smooth
from deconv_cli.operators.axes import crop
from deconv_cli.vocabulary import Size

THRESHOLD = 8.0
"""Height of a bead above the background, in standard deviations of the smoothed noise."""
RING = 0.2
"""A maximum beside one that is so much brighter is a ring of it, and no bead."""
CLIP, N_CLIPS = 3.0, 8
TAILS = 0.2
"""Tails fill a stack if its darkest place, smoothed, is this many standard deviations below the rest."""
NEAR = 1.25
"""Beads are too close within this many half widths of the window."""


@dataclass(frozen=True)
class BeadCensus:
    """What became of the maxima that stand out of the background.

    Attributes:
        used: places of the beads that are fit, shape `(n, n_axes)`, whole numbers.
        others: places of the beads that are not.
        heights: of the used beads, smoothed, above the background.
        other_heights: of the others.
        n_crowded: beads with another one too close.
        n_saturated: beads with a sample that is full.
        n_at_edge: beads whose window reaches out of the picture.
        is_background: samples far from every bead, of the shape of the picture.
    """

    used: Tensor
    others: Tensor
    heights: Tensor
    other_heights: Tensor
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
        white: the value of a saturated sample; `None` without one.
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
        others=places[~is_used & ~is_ring],
        heights=heights[is_used],
        other_heights=heights[~is_used & ~is_ring],
        n_crowded=int((is_crowded & ~is_full).sum()),
        n_saturated=int(is_full.sum()),
        n_at_edge=int((is_at_edge & ~is_crowded & ~is_full).sum()),
        is_background=~near_places(places, size, image.shape),
    )


def _around(image: Tensor, place: Tensor, half: Tensor) -> Tensor:
    return image[tuple(slice(max(int(p - h), 0), int(p + h) + 1) for p, h in zip(place, half, strict=True))]


def near_places(places: Tensor, size: Size, image_size: Size) -> Tensor:
    """Mark the samples that lie within a window of a size around any of some places, shape `image_size`."""
    is_near = torch.zeros(image_size, dtype=torch.bool)
    for place in places:
        is_near[
            tuple(slice(max(int(p) - n // 2, 0), int(p) + n // 2 + 1) for p, n in zip(place, size, strict=True))
        ] = True
    return is_near


def background_of(image: Tensor, census: BeadCensus) -> float:
    """Estimate the background far from all beads, or in the darkest place where their tails fill the image."""
    everywhere = image[census.is_background]
    if not len(everywhere):
        return float(image.min())
    level, noise = clipped_mean(everywhere)
    lights, shares = image, torch.ones_like(image)
    for step in (1, 2, 4):
        lights, shares = (smooth(each, step, "constant") for each in (lights, shares))
    darkest = float((lights / shares).min())
    return darkest if image.ndim == 3 and level - darkest > TAILS * noise else level


def cut_windows(image: Tensor, places: Tensor, size: Size) -> Tensor:
    """Cut windows of a size around places, shape `(n, *size)`."""
    return torch.stack(
        [crop(image, tuple(int(p) - n // 2 for p, n in zip(place, size, strict=True)), size) for place in places]
    )
