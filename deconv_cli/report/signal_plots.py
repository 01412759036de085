"""Signals on a page: before, after and the truth as lines, with the error to be expected around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from deconv_cli.report.drawing import Plot, Theme, draw_plot, legend, style
from deconv_cli.report.page_pictures import ScaledImage
from deconv_cli.vocabulary import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
