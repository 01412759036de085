"""Drawing plots for a page: as SVG, once for paper and once for a dark screen."""

from __future__ import annotations

import base64
import io
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


@dataclass(frozen=True)
class Theme:
    """Colors of a plot; those of lines are told apart by the color-blind too (Okabe and Ito, 2008)."""

    ink: str
    faint: str
    first: str
    second: str
    accent: str


LIGHT = Theme(ink="#1f2328", faint="#c9ced6", first="#0072b2", second="#d55e00", accent="#7a3e9d")
DARK = Theme(ink="#e6e9ee", faint="#4a515c", first="#56b4e9", second="#e69f00", accent="#cc79a7")

_DARKENED = dict(zip(astuple(LIGHT), astuple(DARK), strict=True))
_COLORS = re.compile("|".join(_DARKENED))

UNIT = "sample units"
"""The unit of what is drawn in units of the samples."""

Draw = Callable[["Figure", Theme], None]
"""Draws on an empty figure."""


@dataclass(frozen=True)
class Plot:
    """A plot as a page shows it: how to read it, what it shows in words and numbers, and it on white and on black."""

    name: str
    caption: str
    alt: str
    light: str
    dark: str


def draw_plot(name: str, caption: str, alt: str, draw: Draw, size: tuple[float, float] = (6.0, 3.6)) -> Plot:
    """Draw a plot in both themes, on a figure of `size` inches, with its heading, how to read it, and what it shows."""
    light = _as_svg(draw, size)
    # Laying out takes far longer than changing colors in a text.
    dark = _COLORS.sub(lambda color: _DARKENED[color.group()], light)
    return Plot(name, caption, alt, *(data_uri(svg.encode("utf-8"), "image/svg+xml") for svg in (light, dark)))


def data_uri(content: bytes, kind: str) -> str:
    """Write content of a media type as `data:image/png;base64,...`, which a page carries inside itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def style(axes: Axes, theme: Theme, x_label: str, y_label: str) -> None:
    """Give axes their labels, and the colors of a theme."""
    axes.set_facecolor("none")
    axes.set_xlabel(x_label, color=theme.ink)
    axes.set_ylabel(y_label, color=theme.ink)
    axes.tick_params(which="both", colors=theme.ink, labelsize=9)
    axes.grid(visible=True, color=theme.faint, linewidth=0.5)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.ink)


def legend(axes: Axes, theme: Theme) -> None:
    """Name the lines of a plot."""
    axes.legend(frameon=False, labelcolor=theme.ink, fontsize=9)


def color_bar(figure: Figure, image: AxesImage, theme: Theme, label: str) -> None:
    """Draw the scale of an image."""
    bar = figure.colorbar(image, ax=figure.axes, shrink=0.9)
    bar.set_label(label, color=theme.ink)
    bar.ax.tick_params(colors=theme.ink)
    bar.outline.set_edgecolor(theme.faint)


def _as_svg(draw: Draw, size: tuple[float, float]) -> str:
    with _quiet_matplotlib():
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        # Letters as outlines: a page shows the same everywhere. No date, and names that do not change from run to run.
        with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "deconv", "font.size": 10}):
            figure = Figure(figsize=size, layout="constrained")
            FigureCanvasAgg(figure)
            draw(figure, LIGHT)
            written = io.BytesIO()
            figure.savefig(written, format="svg", transparent=True, metadata={"Date": None}, dpi=120)
    return written.getvalue().decode("utf-8")


@contextmanager
def _quiet_matplotlib() -> Iterator[None]:
    """Keep matplotlib from reporting on its font cache: only commands print."""
    logger = logging.getLogger("matplotlib")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
