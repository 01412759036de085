"""Stacks on a page: one plane at a time, and two cuts across all planes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn import functional

from deconv_cli.operators.axes import crop, unravel
from deconv_cli.report.page_pictures import ScaledImage, averaged, encode_hatching, encode_scale, encode_shades
from deconv_cli.report.plots import data_uri
from deconv_cli.vocabulary import Size, format_size, format_spacing

# Longest side of a plane in pixels: at most, and at least.
MAX_SIDE = 320
MIN_SIDE = 64
MAX_PLANES = 48
"""Planes of a stack on a page; a deeper one has evenly spaced planes and the brightest one."""
MAX_BYTES = 2_500_000
"""Of all stacks of a page; base64 makes four of three."""
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
    planes_uri: str
    right_uri: str
    below_uri: str
    hatchings: tuple[str, str, str] | None
    scale_uri: str


@dataclass(frozen=True)
class CutGeometry:
    """Where stacks are cut, and how large the cuts are drawn.

    Attributes:
        shape: samples along Z, Y and X.
        extent: lengths along Z, Y and X in the units of the drawing, to scale if the samples' distances are known.
        place: where the stacks are cut: the numbers of plane, row and column.
        planes: numbers of the planes on the page.
        gap: between the planes and the cuts, in the units of the drawing.
    """

    shape: tuple[int, ...]
    extent: tuple[float, ...]
    place: tuple[int, ...]
    planes: tuple[int, ...]
    gap: float = GAP

    @classmethod
    def of(cls, shape: Size, place: Size, spacing: Sequence[float] | None, planes: tuple[int, ...]) -> CutGeometry:
        """Lay out cuts whose planes are as wide or as high as the drawing."""
        steps = (1.0,) * len(shape) if spacing is None else spacing
        lengths = [n * step for n, step in zip(shape, steps, strict=True)]
        per_unit = WIDTH / max(lengths[1:])
        return cls(shape, tuple(length * per_unit for length in lengths), place, planes)

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


@dataclass(frozen=True, eq=False)
class Cuts:
    """Stacks that are cut at one place, as drawings of one size, and a sentence on that place."""

    geometry: CutGeometry
    pictures: tuple[CutPicture, ...]
    sentence: str


def draw_cuts(images: Sequence[ScaledImage], spacing: Sequence[float] | None) -> Cuts:
    """Draw stacks, cut at the brightest place of the estimate, as large as `MAX_BYTES` for all of them allow.

    The estimate is among the images `(D, H, W)` or `(3, D, H, W)`; smaller ones are in its middle. The spacing of the
    samples along Z, Y and X is in micrometers.
    """
    estimate = next(image for image in images if image.name.startswith("Estimate")).values
    shape, place = tuple(estimate.shape[-3:]), brightest_place(estimate)
    geometry = CutGeometry.of(shape, place, spacing, _planes(shape[0], place[0]))
    longest = max(shape[1:])
    side = min(longest, MAX_SIDE)
    pictures = tuple(_draw(image, geometry, side) for image in images)
    while (n_bytes := sum(map(_size, pictures))) > MAX_BYTES and side > MIN_SIDE:
        side = max(int(side * min((MAX_BYTES / n_bytes) ** 0.5, 0.95)), MIN_SIDE)
        pictures = tuple(_draw(image, geometry, side) for image in images)
    sentence = (
        f"{format_size(shape)} samples. To the right of each plane lies the cut along column {place[2] + 1}, below it "
        f"the cut along row {place[1] + 1}, through a bright place of the estimate; the lines show where they meet."
    )
    if spacing is not None:
        sentence += f" Distances are to scale: {format_spacing(spacing)} a sample along Z, Y and X."
    if len(geometry.planes) < shape[0]:
        sentence += f" {len(geometry.planes)} of {shape[0]} planes are shown."
    if side < longest:
        sentence += f" Planes were averaged down to at most {side} a side."
    return Cuts(geometry, pictures, sentence)


def draw_center(image: ScaledImage, spacing: Sequence[float] | None) -> Cuts:
    """Draw one plane of a stack, and cuts through its middle."""
    shape = tuple(image.values.shape[-3:])
    place = tuple(n // 2 for n in shape)
    geometry = CutGeometry.of(shape, place, spacing, place[:1])
    return Cuts(geometry, (_draw(image, geometry, max(shape[1:])),), "")


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


def _planes(n_planes: int, chosen: int) -> tuple[int, ...]:
    """Choose evenly spaced planes, a given one among them."""
    step = -(-n_planes // MAX_PLANES)
    return tuple(range(chosen % step, n_planes, step))


def _draw(image: ScaledImage, geometry: CutGeometry, side: int) -> CutPicture:
    shape, place, planes = geometry.shape, geometry.place, geometry.planes
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

    pictures = [_encoded(replace(image, values=values, mask=None)) for values in cuts(image.values)]
    hatchings = None if image.mask is None else [_hatched(mask) for mask in cuts(image.mask)]
    return CutPicture(
        image=image,
        alt=f"{image.name}, a stack: {image.summary}",
        planes_uri=pictures[0],
        right_uri=pictures[1],
        below_uri=pictures[2],
        hatchings=None if hatchings is None else (hatchings[0], hatchings[1], hatchings[2]),
        scale_uri=data_uri(encode_scale(image.color_map), "image/png"),
    )


def _encoded(image: ScaledImage) -> str:
    return data_uri(encode_shades(image, max(image.values.shape[-2:])), "image/png")


def _hatched(mask: Tensor) -> str:
    return data_uri(encode_hatching(mask, max(mask.shape), STRIPES), "image/png")


def _size(picture: CutPicture) -> int:
    uris = (picture.planes_uri, picture.right_uri, picture.below_uri, *(picture.hatchings or ()))
    return sum(map(len, uris)) * 3 // 4
