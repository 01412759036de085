"""Plots of the error: the edges, the parts of the predicted error, the residual."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deconv_cli.diagnostics.predicted_error import ErrorBand
from deconv_cli.diagnostics.residual import BorderBand
from deconv_cli.diagnostics.residual_tests import ResidualTests
from deconv_cli.diagnostics.whiteness import Whiteness
from deconv_cli.report.drawing import UNIT, Plot, Theme, color_bar, draw_plot, legend, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_PLANES = 2
"""Of a field of three axes: the one of rows and columns, and the one of planes and columns."""


@dataclass(frozen=True, eq=False)
class CenteredField:
    """Values about a center, shape `(n, ...)` with one to three axes, and what each field is called."""

    name: str
    values: Tensor


@dataclass(frozen=True)
class FieldScale:
    """How fields are drawn.

    Attributes:
        reach: from the center to either end of an axis, in its unit.
        unit: of the axes, after their direction.
        low: the value that the darkest shade stands for.
        high: likewise, the lightest.
        color_map: of matplotlib.
        label: what the values are.
    """

    reach: float
    unit: str
    low: float
    high: float
    color_map: str
    label: str


def n_panels(fields: Sequence[CenteredField]) -> int:
    """Count the panels that some fields take, side by side."""
    return len(fields) * (N_PLANES if fields[0].values.ndim == 3 else 1)


def draw_fields(figure: Figure, theme: Theme, fields: Sequence[CenteredField], scale: FieldScale) -> None:
    """Draw fields of one size side by side on an empty figure."""
    if fields[0].values.ndim == 1:
        _draw_lines(figure, theme, fields, scale)
        return
    panels = [panel for field in fields for panel in _planes(field)]
    for number, (name, direction, values) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        is_labeled = number == 1 or direction != panels[number - 2][1]
        style(axes, theme, f"across, {scale.unit}", f"{direction}, {scale.unit}" if is_labeled else "")
        extent = (-scale.reach, scale.reach, scale.reach, -scale.reach)
        image = axes.imshow(
            values.numpy(), cmap=scale.color_map, vmin=scale.low, vmax=scale.high, extent=extent, aspect="auto"
        )
        axes.set_box_aspect(1)
        axes.grid(visible=False)
        if len(fields) > 1:
            axes.set_title(name, color=theme.ink, fontsize=10)
    color_bar(figure, image, theme, scale.label)


def _draw_lines(figure: Figure, theme: Theme, fields: Sequence[CenteredField], scale: FieldScale) -> None:
    axes = figure.add_subplot()
    for field, color in zip(fields, (theme.first, theme.second), strict=False):
        places = torch.linspace(-scale.reach, scale.reach, len(field.values) + 1)
        axes.plot((places[:-1] + places[1:]).numpy() / 2, field.values.numpy(), color=color, label=field.name)
    style(axes, theme, scale.unit, scale.label)


def _planes(field: CenteredField) -> list[tuple[str, str, Tensor]]:
    """Give planes through the center, with the field's name, and the direction of their rows."""
    values = field.values
    if values.ndim == 2:
        return [(field.name, "down", values)]
    return [
        (field.name, "down", values[values.shape[0] // 2]),
        (field.name, "deep", values[:, values.shape[1] // 2]),
    ]


def border_plot(bands: Sequence[BorderBand], errors: Sequence[ErrorBand] | None) -> Plot:
    """Draw the residual, and the error where one is given, against the distance from the edge."""
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
    caption = "Root mean square by distance from the nearest edge; the last point gathers all that is deeper."
    return draw_plot("From the edge inwards", caption, alt, draw)


def error_parts_plot(bands: Sequence[ErrorBand]) -> Plot:
    """Draw what the predicted error is made of by distance from the edge, and how far the periodic estimate is away."""
    reach = [band.distance for band in bands]
    lines = [
        ("noise", [band.noise for band in bands], "-", "first"),
        ("null space", [band.null_space for band in bands], "--", "second"),
        ("outside the frame", [band.outside_frame for band in bands], "-", "accent"),
    ]
    periodic = [(band.distance, band.periodic) for band in bands if band.periodic is not None]

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        for name, values, dashes, color in lines:
            axes.plot(reach, [value or math.nan for value in values], dashes, color=getattr(theme, color), label=name)
        if periodic:
            axes.plot(*zip(*periodic, strict=True), ":", color=theme.ink, label="distance to the periodic estimate")
        axes.set_yscale("log")
        style(axes, theme, "pixels from the edge", f"rms, {UNIT}")
        legend(axes, theme)

    edge, inside = bands[0], bands[-1]
    alt = (
        f"On the edge noise makes {edge.noise:.3g}, the null space {edge.null_space:.3g} and what lies outside the "
        f"frame {edge.outside_frame:.3g} {UNIT} of the error; inside {inside.noise:.3g}, {inside.null_space:.3g} and "
        f"{inside.outside_frame:.3g}."
    )
    caption = "The parts of the predicted error, whose squares add up; where a line ends, that part is nothing."
    if periodic:
        alt += f" The periodic estimate is {periodic[0][1]:.3g} away on the edge, {periodic[-1][1]:.3g} inside."
        caption += " Dotted: how far the estimate is from the one that takes the picture to repeat itself."
    return draw_plot("What the error is made of", caption, alt, draw)


def histogram_plot(tests: ResidualTests) -> Plot:
    """Draw how the residual is distributed."""
    histogram = tests.histogram

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        axes.stairs(histogram.counts, histogram.edges, fill=True, color=theme.first, alpha=0.8, label="residual")
        if tests.noise:
            _draw_noise(axes, theme, tests)
        style(axes, theme, f"residual, {UNIT}", "samples")
        legend(axes, theme)

    noise = "" if tests.noise is None else f"; noise of the data {tests.noise:.3g}"
    alt = f"Distribution of the residual away from the edges: rms {tests.interior_rms:.3g} {UNIT}{noise}."
    caption = (
        "The line is the noise of the data. A residual that is much wider holds more than noise. It is narrower as a "
        "rule, since the estimate takes up a part of the noise; whether it is too much is said at the top."
    )
    return draw_plot("Residual against noise", caption, alt, draw)


def correlation_plot(whiteness: Whiteness) -> Plot:
    """Draw how the residual at one pixel correlates with that at others."""
    lag = whiteness.max_lag
    correlation = whiteness.autocorrelation.cpu().clone()
    correlation[(lag,) * correlation.ndim] = math.nan
    span = max(whiteness.largest, 0.05)
    fields = [CenteredField("correlation", correlation)]
    scale = FieldScale(lag + 0.5, "lag in pixels", -span, span, "cividis", "correlation")

    def draw(figure: Figure, theme: Theme) -> None:
        draw_fields(figure, theme, fields, scale)

    alt = (
        f"Neighbors in the residual correlate by up to {whiteness.largest:.2g}; Q = {whiteness.statistic:.4g} over "
        f"{whiteness.n_lags} lags is {whiteness.z_score:.3g} standard deviations from white noise."
    )
    caption = (
        "How the residual at one pixel correlates with that some pixels away. Noise that nothing was taken from gives "
        "an even field about zero; what the estimate has taken up leaves a pattern."
    )
    return draw_plot("The residual's neighbors", caption, alt, draw, (6.0, 3.6 if n_panels(fields) == 1 else 2.9))


def _draw_noise(axes: Axes, theme: Theme, tests: ResidualTests) -> None:
    edges, noise = tests.histogram.edges, tests.noise
    assert noise
    total, width = sum(tests.histogram.counts), edges[1] - edges[0]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(edges)]
    heights = [
        total * width * math.exp(-0.5 * (middle / noise) ** 2) / (noise * math.sqrt(2 * math.pi)) for middle in middles
    ]
    axes.plot(middles, heights, color=theme.second, linewidth=1.6, label="noise of the data")
