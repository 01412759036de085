"""Plots of the error: the edges, the parts of the predicted error, the residual."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deconv_cli.diagnostics.predicted_error import ErrorBand
from deconv_cli.diagnostics.residual import BorderBand
from deconv_cli.diagnostics.residual_tests import ResidualTests
from deconv_cli.diagnostics.whiteness import Whiteness
from deconv_cli.report.centered_fields import CenteredField, FieldScale, draw_fields, n_panels
from deconv_cli.report.drawing import UNIT, Plot, Theme, draw_plot, legend, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
