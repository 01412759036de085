"""Images on a page: pictures in gray or with a color map, averaged down if they are large; signals as lines."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.report.plots import Plot, Theme, data_uri, draw_plot, legend, style
from deconv_cli.vocabulary import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Longest side of a picture in pixels: at most, and at least.
MAX_SIDE = 1024
MIN_SIDE = 128
# Bytes of all pictures together; base64 makes four of three.
MAX_BYTES = 1_000_000
# Levels of a color map: more look alike, and take twice the space.
N_LEVELS = 64
SCALE_LENGTH = 64


@dataclass(frozen=True, eq=False)
class ScaledImage:
    """An image, `(H, W)` or `(3, H, W)` in colors, and the values of its darkest and its lightest shade.

    It is gray without a `color_map` of matplotlib, and hatched where the `mask` of shape `(H, W)` is true. A stack has
    an axis of depth before the last two.
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
    """An image of a page: with its content in words, its scale of shades, and stripes over it."""

    image: ScaledImage
    alt: str
    uri: str
    width: int
    height: int
    scale_uri: str
    hatching_uri: str | None


def draw_pictures(images: list[ScaledImage]) -> tuple[list[PagePicture], int]:
    """Draw images as large as `MAX_BYTES` for all of them allow; give the longest side in pixels too."""
    side = min(max((max(image.values.shape[-2:]) for image in images), default=MIN_SIDE), MAX_SIDE)
    while True:
        encoded = [encode_shades(image, side) for image in images]
        n_bytes = sum(map(len, encoded))
        if n_bytes <= MAX_BYTES or side <= MIN_SIDE:
            break
        # Bytes grow with the area.
        side = max(int(side * min((MAX_BYTES / n_bytes) ** 0.5, 0.95)), MIN_SIDE)
    return [_picture(image, content, side) for image, content in zip(images, encoded, strict=True)], side


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
    part = (averaged(image.values, _reduced_size(image.values, side)) - image.low) / (image.high - image.low)
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


N_SAMPLES = 2**20
"""Of a larger image only every second, third, ... sample is used."""
CLIPPED = 0.001
"""Share of the samples beyond either end of the range."""


def display_range(*images: Tensor) -> tuple[float, float]:
    """Find the range of all but the most extreme thousandth of the finite samples of images of any shapes.

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
        # torch.quantile is limited in size.
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
    """Draw the first channel of input, estimate, truth and predicted error, if they are known, shape `(N,)` each."""
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
