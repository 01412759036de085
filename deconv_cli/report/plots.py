"""Plots of a page as SVG, once for paper and once for a dark screen: the choice of λ, and the border."""

from __future__ import annotations

import base64
import io
import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

from deconv_cli.diagnostics.lambda_choice import LambdaChoice
from deconv_cli.diagnostics.predicted_error import ErrorBand
from deconv_cli.diagnostics.residual import BorderBand

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Theme:
    """Colors of a plot; color-blind readers can distinguish the lines (Okabe and Ito, 2008)."""

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

Draw = Callable[["Figure", Theme], None]
"""Draws on an empty figure."""


@dataclass(frozen=True)
class Plot:
    """A plot of a page: its heading, how to read it, its content in words and numbers, and its two images."""

    name: str
    caption: str
    alt: str
    light: str
    dark: str


def draw_plot(name: str, caption: str, alt: str, draw: Draw, size: tuple[float, float] = (6.0, 3.6)) -> Plot:
    """Draw a plot in both themes, on a figure of `size` inches."""
    with _quiet_matplotlib():
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        # Letters as outlines look the same everywhere. Without a date, and with fixed names, runs give the same file.
        with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "deconv", "font.size": 10}):
            figure = Figure(figsize=size, layout="constrained")
            FigureCanvasAgg(figure)
            draw(figure, LIGHT)
            written = io.BytesIO()
            figure.savefig(written, format="svg", transparent=True, metadata={"Date": None}, dpi=120)
    light = written.getvalue().decode("utf-8")
    # Layout takes far longer than changing colors in a text.
    dark = _COLORS.sub(lambda color: _DARKENED[color.group()], light)
    return Plot(name, caption, alt, *(data_uri(svg.encode("utf-8"), "image/svg+xml") for svg in (light, dark)))


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


def data_uri(content: bytes, kind: str) -> str:
    """Write content of a media type as `data:image/png;base64,...`, so that the page contains it."""
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


def lambda_plot(choice: LambdaChoice) -> Plot:
    """Draw what the rule for λ and its cross-check minimize, and what they chose."""
    curves = [choice.curve, choice.cross_check]

    def draw(figure: Figure, theme: Theme) -> None:
        for number, (curve, color) in enumerate(zip(curves, (theme.first, theme.second), strict=True), start=1):
            axes, values = figure.add_subplot(1, len(curves), number), list(curve.values)
            axes.plot(curve.lams, values, color=color, linewidth=1.6)
            axes.set_xscale("log")
            if min(values) > 0 and max(values) > 10 * min(values):
                axes.set_yscale("log")
            if choice.lam > 0:
                axes.axvline(choice.lam, color=theme.accent, linestyle="--", linewidth=1.2)
            away = [abs(math.log(lam / curve.chosen)) for lam in curve.lams]
            nearest = away.index(min(away))
            axes.plot([curve.lams[nearest]], [values[nearest]], "o", color=color, markersize=7)
            style(axes, theme, "λ, in units of σ²max", str(curve.rule))

    parts = [
        f"{curve.rule} over {len(curve.lams)} values of λ from {min(curve.lams):.2g} to {max(curve.lams):.2g} "
        f"chooses {curve.chosen:.3g}"
        for curve in curves
    ]
    alt = f"λ = {choice.lam:.3g} by {choice.rule}. {'; '.join(parts)}."
    caption = "What each rule minimizes, for every λ that was tried. The dot is its own choice, the line the λ taken."
    return draw_plot("The choice of λ", caption, alt, draw)


def border_plot(bands: Sequence[BorderBand], errors: Sequence[ErrorBand] | None) -> Plot:
    """Draw the residual, and the error if there is one, against the distance from the edge."""
    distances = [band.distance for band in bands]
    residuals = [band.residual_rms for band in bands]

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        axes.plot(distances, residuals, color=theme.first, label="residual")
        if errors:
            reach = [error.distance for error in errors]
            axes.plot(reach, [error.predicted for error in errors], "--", color=theme.second, label="predicted error")
            known = [(error.distance, error.actual) for error in errors if error.actual is not None]
            if known:
                axes.plot(*zip(*known, strict=True), color=theme.accent, linewidth=2, label="actual error")
            legend(axes, theme)
        axes.set_ylim(bottom=0)
        style(axes, theme, "pixels from the edge", f"rms, {UNIT}")

    alt = (
        f"Residual rms {residuals[0]:.3g} on the edge and {residuals[-1]:.3g} from {distances[-1]} pixels inwards, "
        f"largest {max(residuals):.3g} at {distances[residuals.index(max(residuals))]} pixels."
    )
    if errors:
        alt += f" Predicted error {errors[0].predicted:.3g} on the edge, {errors[-1].predicted:.3g} inside."
    caption = "Root mean square by distance from the nearest edge; the last point is for all deeper pixels."
    return draw_plot("From the edge inwards", caption, alt, draw)
