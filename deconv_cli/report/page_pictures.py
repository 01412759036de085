"""Images on a page: as pictures in gray or under a color map, averaged down where they are large; signals as lines."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.report.drawing import Plot, Theme, data_uri, draw_plot, legend, style
from deconv_cli.vocabulary import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Longest side of a picture in pixels: at most, and at least.
MAX_SIDE = 1024
MIN_SIDE = 128
# Bytes of the pictures that are drawn together; base64 makes four of three.
MAX_BYTES = 1_000_000
# Levels of a color map: more cannot be told apart, and would take twice the space.
N_LEVELS = 64
SCALE_LENGTH = 64


@dataclass(frozen=True, eq=False)
class ScaledImage:
    """An image, `(H, W)` or `(3, H, W)` in colors, and the values that its darkest and its lightest shade stand for.

    Gray without a `color_map` of matplotlib's; hatched where the `mask` of shape `(H, W)` is true. A stack has an axis
    of depth before the last two.
    """

    name: str
    values: Tensor
    low: float
    high: float
    caption: str
    unit: str
    color_map: str | None = None
    mask: Tensor | None = None

    @property
    def summary(self) -> str:
        """The range and the mean of the values, and the caption."""
        found = (self.values.min(), self.values.max(), self.values.double().mean())
        low, high, mean = (f"{float(value):.4g}" for value in found)
        return f"values from {low} to {high}, mean {mean} {self.unit}. {self.caption}"


@dataclass(frozen=True, eq=False)
class PagePicture:
    """An image as a page shows it: with its content in words, its scale of shades, and stripes to lay over it."""

    image: ScaledImage
    alt: str
    uri: str
    width: int
    height: int
    scale_uri: str
    hatching_uri: str | None


def draw_pictures(images: list[ScaledImage]) -> tuple[list[PagePicture], int]:
    """Draw images as large as all of them together may be.

    Returns:
        The pictures, and the longest side that was allowed, in pixels.
    """
    side = min(max((max(image.values.shape[-2:]) for image in images), default=MIN_SIDE), MAX_SIDE)
    while True:
        encoded = [encode_shades(image, side) for image in images]
        n_bytes = sum(map(len, encoded))
        if n_bytes <= MAX_BYTES or side <= MIN_SIDE:
            break
        # Bytes grow with the area; what is averaged is smoother, but not by much.
        side = max(int(side * min((MAX_BYTES / n_bytes) ** 0.5, 0.95)), MIN_SIDE)
    return [_picture(image, content, side) for image, content in zip(images, encoded, strict=True)], side


def _reduced(values: Tensor, side: int) -> Tensor:
    """Average pixels so that the longer side has no more than `side`: `(*, H, W)` to `(*, h, w)`."""
    return averaged(values, _reduced_size(values, side))


def averaged(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Average planes `(*, H, W)` down to a size."""
    if size == tuple(values.shape[-2:]):
        return values.double()
    planes = values.double().reshape(1, -1, *values.shape[-2:])
    return functional.adaptive_avg_pool2d(planes, size).reshape(*values.shape[:-2], *size)


def _reduced_size(values: Tensor, side: int) -> tuple[int, int]:
    height, width = values.shape[-2:]
    scale = min(side / max(height, width), 1.0)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def encode_shades(image: ScaledImage, side: int) -> bytes:
    """Write an image as PNG, its longer side averaged down to at most `side`."""
    n_levels = 256 if image.color_map is None else N_LEVELS
    part = (_reduced(image.values, side) - image.low) / (image.high - image.low)
    levels = (part * n_levels).floor().clamp(0, n_levels - 1).to(torch.uint8)
    if levels.ndim == 3:
        return encode_png(levels.permute(1, 2, 0))
    return encode_png(levels, None if image.color_map is None else _palette(image.color_map, n_levels))


def _picture(image: ScaledImage, content: bytes, side: int) -> PagePicture:
    height, width = _reduced_size(image.values, side)
    return PagePicture(
        image=image,
        alt=f"{image.name}: {image.summary}",
        uri=data_uri(content, "image/png"),
        width=width,
        height=height,
        scale_uri=data_uri(encode_scale(image.color_map), "image/png"),
        hatching_uri=None if image.mask is None else data_uri(encode_hatching(image.mask, side), "image/png"),
    )


def encode_scale(color_map: str | None) -> bytes:
    """Write all shades, from the darkest to the lightest, as PNG."""
    if color_map is None:
        return encode_png((torch.arange(SCALE_LENGTH) * 255 // (SCALE_LENGTH - 1)).to(torch.uint8)[None])
    return encode_png(torch.arange(SCALE_LENGTH, dtype=torch.uint8)[None], _palette(color_map, SCALE_LENGTH))


def _palette(name: str, n_levels: int) -> Tensor:
    from matplotlib import colormaps

    colors = torch.from_numpy(colormaps[name].resampled(n_levels)(range(n_levels)))[:, :3]
    return (colors * 255).round().to(torch.uint8)


def encode_hatching(mask: Tensor, side: int, period: int | None = None) -> bytes:
    """Write a PNG of stripes where more than half of a pixel is masked, `period` pixels apart; elsewhere nothing."""
    masked = _reduced(mask, side) > 0.5
    height, width = masked.shape
    period = period or max(max(height, width) // 48, 4)
    stripe = (torch.arange(height)[:, None] + torch.arange(width)) % period < (period + 2) // 3
    palette = torch.tensor([[0, 0, 0], [230, 159, 0]], dtype=torch.uint8)
    return encode_png((masked & stripe).to(torch.uint8), palette, bytes([0, 255]))


GRAY, RGB, PALETTE = 0, 2, 3
FILTER_UP = 2


def encode_png(samples: Tensor, palette: Tensor | None = None, alpha: bytes = b"") -> bytes:
    """Encode samples of 8 bits.

    Args:
        samples: uint8, shape `(H, W)` or `(H, W, 3)`.
        palette: uint8, shape `(n, 3)`: the colors that `(H, W)` samples stand for.
        alpha: opacity of the first colors of the palette, a byte each.

    Returns:
        The whole file (Portable Network Graphics Specification, third edition, 2025).
    """
    height, width = samples.shape[:2]
    color_type = RGB if samples.ndim == 3 else GRAY if palette is None else PALETTE
    lines = samples.contiguous().reshape(height, -1)
    if color_type != PALETTE:
        # The difference to the line above is what compresses in a photograph; numbers of colors have none.
        lines = torch.cat([lines[:1], lines[1:] - lines[:-1]])
    kind = torch.full((height, 1), 0 if color_type == PALETTE else FILTER_UP, dtype=torch.uint8)
    chunks = [_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0))]
    if palette is not None:
        chunks.append(_chunk(b"PLTE", bytes(palette.flatten().tolist())))
        chunks += [_chunk(b"tRNS", alpha)] if alpha else []
    body = zlib.compress(torch.cat([kind, lines], dim=1).numpy().tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + b"".join([*chunks, _chunk(b"IDAT", body), _chunk(b"IEND", b"")])


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


N_SAMPLES = 2**20
"""Of a larger image only every second, third, ... sample is used."""
CLIPPED = 0.001
"""The share of the samples beyond either end of the range."""


def display_range(*images: Tensor) -> tuple[float, float]:
    """Find the range that all but the most extreme thousandth of the finite samples lie in, for all images together.

    Args:
        images: of any shapes; samples that are not finite are left out.

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
        # By order, since torch's quantiles are limited in size.
        ordered = flat.sort().values
        last = len(ordered) - 1
        lows.append(float(ordered[round(CLIPPED * last)]))
        highs.append(float(ordered[round((1 - CLIPPED) * last)]))
    low, high = min(lows, default=0.0), max(highs, default=0.0)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


WIDTH = 12.0
"""Of a plot of signals, in inches."""
_LINES = ("Input", "Estimate", "Truth")


def signals_plot(images: Sequence[ScaledImage]) -> Plot:
    """Draw the first channel of the signals of a page, each of shape `(N,)`.

    Args:
        images: the input and the estimate, and the truth and the predicted error where they are known.
    """
    named = {image.name.partition(",")[0]: image for image in reversed(images)}
    shown = {name: named[name] for name in _LINES if name in named}
    error = named.get("Predicted error")

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        for (name, image), color in zip(shown.items(), (theme.faint, theme.first, theme.second), strict=False):
            axes.plot(image.values.double().numpy(), color=color, linewidth=1.2, label=name.lower())
        if error is not None:
            estimate, width = shown["Estimate"].values.double(), error.values.double()
            low, high = (estimate - width).numpy(), (estimate + width).numpy()
            label = "± predicted error"
            axes.fill_between(range(len(low)), low, high, color=theme.first, alpha=0.2, linewidth=0, label=label)
        style(axes, theme, "sample", shown["Estimate"].unit)
        legend(axes, theme)

    alt = "; ".join(f"{name}: values from {_range(image.values)}" for name, image in shown.items())
    return draw_plot("Before and after", "The first channel of the first signal.", f"{alt}.", draw, (WIDTH, 3.6))


def taps_plot(taps: Tensor, caption: str) -> Plot:
    """Draw the taps of a signal's kernel, shape `(k,)`."""

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        axes.vlines(range(len(taps)), 0, taps.double().numpy(), color=theme.first, linewidth=2)
        axes.axhline(0, color=theme.faint, linewidth=1)
        style(axes, theme, "tap", "weight")

    return draw_plot("Kernel", caption, f"{counted(len(taps), 'tap')}, values from {_range(taps)}.", draw, (6.0, 2.4))


def _range(values: Tensor) -> str:
    return f"{float(values.min()):.4g} to {float(values.max()):.4g}"
