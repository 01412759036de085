"""Images on a page: pictures, averaged down if they are large; signals as lines; stacks by planes and two cuts."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.operators.axes import crop
from deconv_cli.vocabulary import format_size, format_spacing

MAX_SIDE = 384
"""Longest side of a picture that is not compared, in pixels."""
N_LEVELS = 64
"""Levels of the false colors: more look alike, and take twice the space."""
FALSE_COLORS = torch.tensor(
    [
        *((68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141)),
        *((39, 173, 129), (92, 200, 99), (170, 220, 50), (253, 231, 37)),
    ]
)
"""Nine colors of viridis (van der Walt and Smith, 2015), which color-blind readers can read too."""
GRAY_LEVELS = "gray levels"
"""The unit of samples from 0 to 255."""
SERIES = ("Input", "Estimate", "Truth")
"""Images that are drawn as lines if they are signals."""
N_STEPS = 1000
"""Parts of a line on a page; a longer signal shows the least and the largest sample of each."""


@dataclass(frozen=True, eq=False)
class ScaledImage:
    """An image, `(H, W)` or `(3, H, W)` in colors, and the values of its darkest and its lightest shade.

    It is gray, or has `false_colors`, and is hatched where the `mask` of shape `(H, W)` is true. A stack has an axis of
    depth before the last two.
    """

    name: str
    values: Tensor
    low: float
    high: float
    caption: str
    unit: str
    false_colors: bool = False
    mask: Tensor | None = None

    @property
    def summary(self) -> str:
        """The range and the mean of the values, and the caption."""
        mean_of_planes = torch.stack([plane.double().mean() for plane in self.values.split(1)]).mean()
        found = (self.values.min(), self.values.max(), mean_of_planes)
        low, high, mean = (f"{float(value):.3g}" for value in found)
        return f"values from {low} to {high}, mean {mean} {self.unit}".rstrip() + f". {self.caption}"

    @property
    def ends(self) -> tuple[str, str]:
        """The values of the darkest and the lightest shade, with three digits."""
        small = 1e-3 * (self.high - self.low)
        low, high = (f"{float(f'{end:.3g}') if abs(end) > small else 0.0:g}" for end in (self.low, self.high))
        return low, high


@dataclass(frozen=True, eq=False)
class PagePicture:
    """An image of a page, with its content in words, and stripes over it."""

    image: ScaledImage
    alt: str
    uri: str
    width: int
    height: int
    hatching_uri: str | None


def draw_picture(image: ScaledImage, side: int = MAX_SIDE) -> PagePicture:
    """Draw an image, its longer side averaged down to at most `side`."""
    height, width = _reduced_size(image.values, side)
    return PagePicture(
        image=image,
        alt=f"{image.name}: {image.summary}",
        uri=data_uri(encode_shades(image, side)),
        width=width,
        height=height,
        hatching_uri=None if image.mask is None else data_uri(encode_hatching(image.mask, side)),
    )


def averaged(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Average planes `(*, H, W)` down to a size."""
    if size == tuple(values.shape[-2:]):
        return values.double()
    planes = values.reshape(-1, 1, *values.shape[-2:])
    # One by one, since double precision takes twice the memory.
    shown = [functional.adaptive_avg_pool2d(plane.double(), size) for plane in planes]
    return torch.cat(shown).reshape(*values.shape[:-2], *size)


def _reduced_size(values: Tensor, side: int) -> tuple[int, int]:
    height, width = values.shape[-2:]
    scale = min(side / max(height, width), 1.0)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def encode_shades(image: ScaledImage, side: int) -> bytes:
    """Write an image as PNG, its longer side averaged down to at most `side`."""
    n_levels = N_LEVELS if image.false_colors else 256
    part = (averaged(image.values, _reduced_size(image.values, side)) - image.low) / (image.high - image.low)
    levels = (part * n_levels).floor().clamp(0, n_levels - 1).to(torch.uint8)
    if levels.ndim == 3:
        return encode_png(levels.permute(1, 2, 0))
    if not image.false_colors:
        return encode_png(levels)
    palette = functional.interpolate(FALSE_COLORS.T[None].double(), n_levels, mode="linear", align_corners=True)
    return encode_png(levels, palette[0].T.round().to(torch.uint8))


def encode_hatching(mask: Tensor, side: int, period: int | None = None) -> bytes:
    """Write a PNG of stripes where more than half of a pixel is masked, `period` pixels apart; elsewhere nothing."""
    masked = averaged(mask, _reduced_size(mask, side)) > 0.5
    height, width = masked.shape
    period = period or max(max(height, width) // 48, 4)
    stripe = (torch.arange(height)[:, None] + torch.arange(width)) % period < (period + 2) // 3
    palette = torch.tensor([[0, 0, 0], [230, 159, 0]], dtype=torch.uint8)
    return encode_png((masked & stripe).to(torch.uint8), palette, transparency=0)


def encode_png(samples: Tensor, palette: Tensor | None = None, **options: int) -> bytes:
    """Encode samples of 8 bits, shape `(H, W)` or `(H, W, 3)`, by Pillow with its options.

    A palette `(n, 3)` gives the colors of samples `(H, W)`.
    """
    from PIL import Image

    picture = Image.fromarray(samples.numpy())
    if palette is not None:
        picture.putpalette(palette.flatten().tolist())
    written = io.BytesIO()
    picture.save(written, "PNG", **options)
    return written.getvalue()


def data_uri(content: bytes) -> str:
    """Write a PNG as `data:image/png;base64,...`, so that the page contains it."""
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"


N_SAMPLES = 2**20
"""Of a larger image only every second, third, ... sample is used."""
CLIPPED = 0.001
"""Share of the samples beyond either end of the range."""


def display_range(*images: Tensor) -> tuple[float, float]:
    """Find the range of the finite samples of images of any shapes, without the most extreme thousandth.

    Returns:
        The values for black and white, in units of the samples; white is above black.
    """
    lows, highs = [], []
    for image in images:
        flat = image.flatten()
        flat = flat[:: max(len(flat) // N_SAMPLES, 1)].double()
        flat = flat[flat.isfinite()]
        if len(flat) == 0:
            continue
        ends = flat.quantile(flat.new_tensor([CLIPPED, 1 - CLIPPED]), interpolation="nearest")
        lows.append(float(ends[0]))
        highs.append(float(ends[1]))
    low, high = min(lows, default=0.0), max(highs, default=0.0)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


@dataclass(frozen=True)
class Lines:
    """Signals as lines in a square from 0 to `N_STEPS`, by name, and the values below and above."""

    low: float
    high: float
    points: dict[str, str]


def draw_lines(images: Sequence[ScaledImage]) -> Lines:
    """Draw the first channel of input, estimate and truth, shape `(N,)` each."""
    named = {image.name.partition(",")[0]: image.values.double() for image in reversed(images)}
    shown = {name: named[name] for name in SERIES if name in named}
    low, high = (end(*(float(end(values.tolist())) for values in shown.values()), 0.0) for end in (min, max))
    height = (high - low) or 1.0

    def points(values: Tensor) -> str:
        parts = values.tensor_split(min(N_STEPS, len(values)))
        ends = [end for part in parts for end in (part.aminmax() if len(part) > 1 else (part,))]
        steps = torch.linspace(0, N_STEPS, len(ends)).tolist()
        return " ".join(f"{x:.1f},{N_STEPS * (high - float(y)) / height:.1f}" for x, y in zip(steps, ends, strict=True))

    return Lines(low, high, {name: points(values) for name, values in shown.items()})


MAX_PLANE_SIDE = 320
MIN_PLANE_SIDE = 64
"""Longest side of a plane of a stack in pixels: at most, and at least."""
MAX_PLANES = 48
"""Planes of a stack on a page; a deeper one has evenly spaced planes and the brightest one."""
MAX_PIXELS = 4_000_000
"""Of all planes of all stacks of a page."""
CUT_WIDTH = 1000.0
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
    extent = tuple(length * CUT_WIDTH / max(lengths[1:]) for length in lengths)
    step = -(-shape[0] // MAX_PLANES)
    planes = tuple(range(place[0] % step, shape[0], step))
    longest = max(shape[1:])
    side = min(longest, MAX_PLANE_SIDE, max(math.isqrt(MAX_PIXELS // (len(images) * len(planes))), MIN_PLANE_SIDE))
    sentence = (
        f"{format_size(shape)} samples. The cut along column {place[2] + 1} is to the right of each plane, the cut "
        f"along row {place[1] + 1} below it. They cross at a bright place of the estimate, which the lines show."
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
    found = torch.unravel_index(crop(smooth, margins, inner).argmax(), inner)
    return tuple(int(at) + margin for at, margin in zip(found, margins, strict=True))


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
