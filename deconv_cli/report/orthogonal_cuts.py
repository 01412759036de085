"""Stacks on a page: their planes, one of which is seen at a time, and two cuts across all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn import functional

from deconv_cli.operators.axes import format_size, unravel
from deconv_cli.report.drawing import data_uri
from deconv_cli.report.page_pictures import ScaledImage, encode_hatching, encode_scale, encode_shades
from deconv_cli.vocabulary import format_spacing

# Longest side of a plane in pixels: at most, and at least.
MAX_SIDE = 320
MIN_SIDE = 64
MAX_PLANES = 48
"""Planes of a stack that a page carries; of a deeper one they lie evenly, and the brightest is among them."""
MAX_BYTES = 2_500_000
"""Of all planes of all stacks of a page together; base64 makes four of three."""
WIDTH = 1000.0
"""Of a plane, in the units of the drawing."""
GAP = 12.0
STRIPES = 6
"""Distance of the stripes of a hatching, in pixels."""


@dataclass(frozen=True, eq=False)
class CutPicture:
    """A stack as a page shows it: all planes one below another, the cut to the right of them, and the one below.

    `hatchings` are stripes to lay over the three, where some places are not to be trusted.
    """

    image: ScaledImage
    alt: str
    planes_uri: str
    right_uri: str
    below_uri: str
    hatchings: tuple[str, str, str] | None
    scale_uri: str


@dataclass(frozen=True, eq=False)
class Cuts:
    """Stacks that are cut at one place, as drawings of one size.

    Attributes:
        pictures: the stacks.
        shape: samples along Z, Y and X, of the estimate.
        extent: lengths along Z, Y and X in the units of the drawing; as the samples' distances are, where known.
        place: where the stacks are cut: the numbers of plane, row and column.
        planes: numbers of the planes that are carried.
        sentence: where that is, and what the sizes are.
    """

    pictures: tuple[CutPicture, ...]
    shape: tuple[int, int, int]
    extent: tuple[float, float, float]
    place: tuple[int, int, int]
    planes: tuple[int, ...]
    sentence: str

    @property
    def gap(self) -> float:
        """Between the plane and the cuts, in the units of the drawing."""
        return GAP

    @property
    def start(self) -> int:
        """Which of the carried planes is seen first."""
        return self.planes.index(self.place[0])

    @property
    def middles(self) -> tuple[float, float, float]:
        """Where the middle of the cut sample lies along each axis, in the units of the drawing."""
        depth, row, column = (
            length * (at + 0.5) / n for length, at, n in zip(self.extent, self.place, self.shape, strict=True)
        )
        return depth, row, column

    @property
    def depths(self) -> tuple[float, ...]:
        """Where the middle of each carried plane lies along Z, in the units of the drawing."""
        return tuple(round(self.extent[0] * (plane + 0.5) / self.shape[0], 2) for plane in self.planes)


def draw_cuts(images: Sequence[ScaledImage], spacing: Sequence[float] | None) -> Cuts:
    """Draw stacks, cut at the brightest place of the estimate, as large as all of them together may be.

    Args:
        images: stacks, `(D, H, W)` or `(3, D, H, W)`, the estimate among them; smaller ones lie in its middle.
        spacing: distances of the samples along Z, Y and X in micrometers, where they are known.
    """
    estimate = next(image for image in images if image.name.startswith("Estimate")).values
    n_planes, n_rows, n_columns = shape = tuple(estimate.shape[-3:])
    place = brightest_place(estimate)
    steps = (1.0, 1.0, 1.0) if spacing is None else tuple(spacing)
    per_unit = WIDTH / max(n_rows * steps[1], n_columns * steps[2])
    depth, height, width = (n * step * per_unit for n, step in zip(shape, steps, strict=True))
    planes = _planes(n_planes, place[0])
    side = min(max(n_rows, n_columns), MAX_SIDE)
    pictures = [_draw(image, shape, place, planes, side) for image in images]
    n_bytes = sum(map(_size, pictures))
    while n_bytes > MAX_BYTES and side > MIN_SIDE:
        side = max(int(side * min((MAX_BYTES / n_bytes) ** 0.5, 0.95)), MIN_SIDE)
        pictures = [_draw(image, shape, place, planes, side) for image in images]
        n_bytes = sum(map(_size, pictures))
    sentence = (
        f"{format_size(shape)} samples. To the right of each plane lies the cut along column {place[2] + 1}, below it "
        f"the cut along row {place[1] + 1}, through the brightest place of the estimate; the lines show where they "
        "meet."
    )
    if spacing is not None:
        sentence += f" Distances are to scale: {format_spacing(spacing)} a sample along Z, Y and X."
    if len(planes) < n_planes:
        sentence += f" {len(planes)} of {n_planes} planes are shown."
    if side < max(n_rows, n_columns):
        sentence += f" Planes were averaged down to at most {side} a side."
    return Cuts(tuple(pictures), (n_planes, n_rows, n_columns), (depth, height, width), place, planes, sentence)


def brightest_place(values: Tensor) -> tuple[int, int, int]:
    """Find the numbers of plane, row and column where a stack `(*, D, H, W)` is brightest, averaged over neighbors."""
    stack = values.detach().cpu().float().reshape(1, -1, *values.shape[-3:]).mean(dim=1, keepdim=True)
    smooth = functional.avg_pool3d(stack, 3, stride=1, padding=1, count_include_pad=False)
    depth, row, column = unravel(int(smooth.argmax()), tuple(stack.shape[-3:]))
    return depth, row, column


def plane_of(image: ScaledImage, number: int) -> ScaledImage:
    """Take one plane out of a stack."""
    mask = None if image.mask is None else image.mask[number]
    return replace(image, values=image.values.select(-3, min(number, image.values.shape[-3] - 1)), mask=mask)


def _planes(n_planes: int, chosen: int) -> tuple[int, ...]:
    """Choose planes that lie evenly, with one that has to be among them."""
    step = -(-n_planes // MAX_PLANES)
    return tuple(range(chosen % step, n_planes, step))


def _draw(
    image: ScaledImage, shape: Sequence[int], place: Sequence[int], planes: Sequence[int], side: int
) -> CutPicture:
    own = image.values.shape[-3:]
    # A stack that is smaller lies in the middle of the estimate, and a larger one around it.
    shifts = [(n - n_own) // 2 for n, n_own in zip(shape, own, strict=True)]
    _, row, column = (min(max(p - s, 0), n - 1) for p, s, n in zip(place, shifts, own, strict=True))
    depths = [min(max(plane - shifts[0], 0), own[0] - 1) for plane in planes]
    scale = min(side / max(own[1:]), 1.0)
    height, width = (max(round(n * scale), 1) for n in own[1:])

    def cuts(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shown = _averaged(values[..., depths, :, :], (height, width))
        right = _averaged(values[..., column].transpose(-2, -1), (height, own[0]))
        below = _averaged(values[..., row, :], (own[0], width))
        return shown.flatten(-3, -2), right, below

    pictures = [_encoded(replace(image, values=values, mask=None)) for values in cuts(image.values)]
    hatchings = None if image.mask is None else [_hatched(mask) for mask in cuts(image.mask)]
    low, high, mean = (f"{float(v):.4g}" for v in (image.values.min(), image.values.max(), image.values.mean()))
    return CutPicture(
        image=image,
        alt=f"{image.name}, a stack: values from {low} to {high}, mean {mean} {image.unit}. {image.caption}",
        planes_uri=pictures[0],
        right_uri=pictures[1],
        below_uri=pictures[2],
        hatchings=None if hatchings is None else (hatchings[0], hatchings[1], hatchings[2]),
        scale_uri=data_uri(encode_scale(image.color_map), "image/png"),
    )


def _averaged(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Average planes `(*, H, W)` down to a size."""
    if tuple(values.shape[-2:]) == size:
        return values.double()
    planes = values.double().reshape(1, -1, *values.shape[-2:])
    return functional.adaptive_avg_pool2d(planes, size).reshape(*values.shape[:-2], *size)


def _encoded(image: ScaledImage) -> str:
    return data_uri(encode_shades(image, max(image.values.shape[-2:])), "image/png")


def _hatched(mask: Tensor) -> str:
    return data_uri(encode_hatching(mask, max(mask.shape), STRIPES), "image/png")


def _size(picture: CutPicture) -> int:
    uris = (picture.planes_uri, picture.right_uri, picture.below_uri, *(picture.hatchings or ()))
    return sum(map(len, uris)) * 3 // 4
