"""Stacks on a page: one plane at a time, and two cuts across all planes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn import functional

from deconv_cli.operators.axes import crop, unravel
from deconv_cli.report.page_pictures import ScaledImage, averaged, data_uri, encode_hatching, encode_shades
from deconv_cli.vocabulary import format_size, format_spacing

# Longest side of a plane in pixels: at most, and at least.
MAX_SIDE = 320
MIN_SIDE = 64
MAX_PLANES = 48
"""Planes of a stack on a page; a deeper one has evenly spaced planes and the brightest one."""
MAX_PIXELS = 4_000_000
"""Of all planes of all stacks of a page."""
WIDTH = 1000.0
"""Of a plane, in the units of the drawing."""
GAP = 12.0
STRIPES = 5
"""Distance of the stripes of a hatching, in pixels."""


@dataclass(frozen=True, eq=False)
class CutPicture:
    """A stack on a page: all planes one below another, the cut to the right of them, and the cut below.

    `hatchings` are stripes over the three, if some places are not to be trusted.
    """

    image: ScaledImage
    alt: str
    uris: list[str]
    hatchings: list[str] | None


@dataclass(frozen=True, eq=False)
class Cuts:
    """Stacks that are cut at one place, as drawings of one size.

    Attributes:
        sentence: what is shown.
        shape: samples along Z, Y and X.
        extent: lengths along Z, Y and X in the units of the drawing, to scale if the samples' distances are known.
        place: where the stacks are cut: the numbers of plane, row and column.
        planes: numbers of the planes on the page.
        gap: between the planes and the cuts, in the units of the drawing.
    """

    pictures: list[CutPicture]
    sentence: str
    shape: tuple[int, ...]
    extent: tuple[float, ...]
    place: tuple[int, ...]
    planes: tuple[int, ...]
    gap: float = GAP

    @property
    def start(self) -> int:
        """The plane that is shown first, by its place in `planes`."""
        return self.planes.index(self.place[0])

    @property
    def middles(self) -> tuple[float, ...]:
        """Middle of the cut sample along each axis, in the units of the drawing."""
        return tuple(length * (at + 0.5) / n for length, at, n in zip(self.extent, self.place, self.shape, strict=True))

    @property
    def depths(self) -> tuple[float, ...]:
        """Middle of each plane along Z, in the units of the drawing."""
        return tuple(round(self.extent[0] * (plane + 0.5) / self.shape[0], 2) for plane in self.planes)


def draw_cuts(images: Sequence[ScaledImage], spacing: Sequence[float] | None) -> Cuts:
    """Draw stacks, cut at the brightest place of the estimate, as large as `MAX_PIXELS` for all of them allow.

    The estimate is among the images `(D, H, W)` or `(3, D, H, W)`; smaller ones are in its middle. The spacing of the
    samples along Z, Y and X is in micrometers.
    """
    estimate = next(image for image in images if image.name.startswith("Estimate")).values
    shape, place = tuple(estimate.shape[-3:]), brightest_place(estimate)
    lengths = [n * step for n, step in zip(shape, spacing or (1.0,) * 3, strict=True)]
    extent = tuple(length * WIDTH / max(lengths[1:]) for length in lengths)
    step = -(-shape[0] // MAX_PLANES)
    planes = tuple(range(place[0] % step, shape[0], step))
    longest = max(shape[1:])
    side = min(longest, MAX_SIDE, max(math.isqrt(MAX_PIXELS // (len(images) * len(planes))), MIN_SIDE))
    sentence = (
        f"{format_size(shape)} samples. To the right of each plane lies the cut along column {place[2] + 1}, below it "
        f"the cut along row {place[1] + 1}, through a bright place of the estimate; the lines show where they meet."
    )
    if spacing is not None:
        sentence += f" Distances are to scale: {format_spacing(spacing)} a sample along Z, Y and X."
    if len(planes) < shape[0]:
        sentence += f" {len(planes)} of {shape[0]} planes are shown."
    if side < longest:
        sentence += f" Planes were averaged down to at most {side} a side."
    pictures = [_draw(image, shape, place, planes, side) for image in images]
    return Cuts(pictures, sentence, shape, extent, place, planes)


def brightest_place(values: Tensor) -> tuple[int, ...]:
    """Find the numbers of plane, row and column where a stack `(*, D, H, W)` is brightest, averaged over neighbors.

    Places near the edges, which are least trustworthy, do not count.
    """
    stack = values.detach().cpu().float().reshape(1, -1, *values.shape[-3:]).mean(dim=1, keepdim=True)
    smooth = functional.avg_pool3d(stack, 3, stride=1, padding=1, count_include_pad=False)[0, 0]
    margins = tuple(n // 8 for n in smooth.shape)
    inner = tuple(n - 2 * margin for n, margin in zip(smooth.shape, margins, strict=True))
    found = unravel(int(crop(smooth, margins, inner).argmax()), inner)
    return tuple(at + margin for at, margin in zip(found, margins, strict=True))


def plane_of(image: ScaledImage, number: int) -> ScaledImage:
    """Take one plane out of a stack."""
    mask = None if image.mask is None else image.mask[number]
    return replace(image, values=image.values.select(-3, min(number, image.values.shape[-3] - 1)), mask=mask)


def _draw(
    image: ScaledImage, shape: tuple[int, ...], place: tuple[int, ...], planes: tuple[int, ...], side: int
) -> CutPicture:
    own = image.values.shape[-3:]
    # All stacks have the same middle.
    shifts = [(n - n_own) // 2 for n, n_own in zip(shape, own, strict=True)]
    _, row, column = (min(max(p - s, 0), n - 1) for p, s, n in zip(place, shifts, own, strict=True))
    depths = [min(max(plane - shifts[0], 0), own[0] - 1) for plane in planes]
    scale = min(side / max(own[1:]), 1.0)
    height, width = (max(round(n * scale), 1) for n in own[1:])

    def cuts(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shown = averaged(values[..., depths, :, :], (height, width))
        right = averaged(values[..., column].transpose(-2, -1), (height, own[0]))
        below = averaged(values[..., row, :], (own[0], width))
        return shown.flatten(-3, -2), right, below

    drawn = [replace(image, values=values, mask=None) for values in cuts(image.values)]
    hatched = None if image.mask is None else cuts(image.mask)
    return CutPicture(
        image=image,
        alt=f"{image.name}, a stack: {image.summary}",
        uris=[data_uri(encode_shades(part, max(part.values.shape[-2:]))) for part in drawn],
        hatchings=hatched and [data_uri(encode_hatching(mask, max(mask.shape), STRIPES)) for mask in hatched],
    )
