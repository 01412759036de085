"""Plots of a page: the choice of λ, the data against the kernel, its spectrum, the residual and the predicted error."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deconv_cli.diagnostics.lambda_choice import LambdaChoice
from deconv_cli.diagnostics.lambda_rules import LambdaCurve
from deconv_cli.diagnostics.picard import Picard
from deconv_cli.diagnostics.predicted_error import ErrorBand
from deconv_cli.diagnostics.residual import BorderBand
from deconv_cli.diagnostics.residual_tests import ResidualTests
from deconv_cli.diagnostics.whiteness import Whiteness
from deconv_cli.report.drawing import UNIT, Plot, Theme, color_bar, draw_plot, legend, style
from deconv_cli.vocabulary import format_percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Singular values below this part of the largest are drawn as this part.
LOWEST = 1e-9


def lambda_plot(choice: LambdaChoice) -> Plot:
    """Draw what the rule for λ and its cross-check minimize, and what they chose."""
    curves = [choice.curve, choice.cross_check]

    def draw(figure: Figure, theme: Theme) -> None:
        for number, (curve, color) in enumerate(zip(curves, (theme.first, theme.second), strict=True), start=1):
            _draw_curve(figure.add_subplot(1, len(curves), number), theme, curve, choice.lam, color)

    parts = [
        f"{curve.rule} over {len(curve.lams)} values of λ from {min(curve.lams):.2g} to {max(curve.lams):.2g} "
        f"chooses {curve.chosen:.3g}"
        for curve in curves
    ]
    alt = f"λ = {choice.lam:.3g} by {choice.rule}. {'; '.join(parts)}."
    caption = "What each rule makes small, for every λ that was tried. The dot is its own choice, the line the λ taken."
    return draw_plot("The choice of λ", caption, alt, draw)


def _draw_curve(axes: Axes, theme: Theme, curve: LambdaCurve, lam: float, color: str) -> None:
    values = list(curve.values)
    axes.plot(curve.lams, values, color=color, linewidth=1.6)
    axes.set_xscale("log")
    if min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
    if lam > 0:
        axes.axvline(lam, color=theme.accent, linestyle="--", linewidth=1.2)
    nearest = min(range(len(values)), key=lambda at: abs(math.log(curve.lams[at] / curve.chosen)))
    axes.plot([curve.lams[nearest]], [values[nearest]], "o", color=color, markersize=7)
    style(axes, theme, "λ, in units of σ²max", str(curve.rule))


def picard_plot(picard: Picard) -> Plot:
    """Draw the data along each mode beside the singular values."""
    n_steps = len(picard.sigma)
    part = [100 * (at + 0.5) / n_steps for at in range(n_steps)]
    largest, strongest = picard.sigma[0], max(picard.coefficients)
    scaled = [max(value / largest, LOWEST) * strongest for value in picard.sigma]

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        axes.plot(part, [max(value, 1e-300) for value in picard.coefficients], color=theme.first, label="data |uᴴy|")
        axes.plot(part, scaled, color=theme.second, linestyle="--", label="σ, scaled to the data")
        axes.axhline(max(picard.noise_floor, 1e-300), color=theme.ink, linestyle=":", label="noise floor")
        axes.set_yscale("log")
        axes.set_ylim(bottom=max(min(scaled[-1], picard.noise_floor / 10), picard.noise_floor / 1e3, 1e-300))
        style(axes, theme, "modes, by falling singular value (%)", UNIT)
        legend(axes, theme)

    recoverable = format_percent(picard.n_recoverable / picard.n_modes)
    alt = (
        f"Singular values fall from {largest:.3g} to {picard.sigma[-1]:.3g}; the data fall from {strongest:.3g} to a "
        f"noise floor of {picard.noise_floor:.3g} {UNIT}; {picard.n_recoverable} of {picard.n_modes} components "
        f"({recoverable}) stand above it."
    )
    caption = (
        "Where the data are above the noise floor they show the picture. Where they have sunk to it while σ goes on "
        "falling, dividing by σ makes noise of them, which λ has to suppress."
    )
    return draw_plot("Data against the kernel (Picard plot)", caption, alt, draw)


def gain_plot(gains: Tensor, sigma_max: float, *, has_channels: bool) -> Plot:
    """Draw the singular values over all frequencies; of a stack, over two planes of them.

    Args:
        gains: the largest and the smallest, shape `(2, n1, ...)`, zero frequency in the middle.
        sigma_max: the largest of all.
        has_channels: the two differ.
    """
    shown = [("largest", gains[0]), ("smallest", gains[1])] if has_channels else [("singular value", gains[0])]
    floor = max(float(gains.min()) / sigma_max, 1e-6)

    fields = {name: (values / sigma_max).clamp_min(floor).log10() for name, values in shown}
    limits = (min(math.log10(floor), -0.01), 0.0)
    weak = float((gains[1] < 0.01 * sigma_max).double().mean())
    alt = (
        f"The largest singular value is {sigma_max:.4g}, the smallest shown {float(gains.min()):.3g}; {100 * weak:.2g} "
        "% of the frequencies comes through less than a hundredth as strongly as the best."
    )
    caption = (
        "How strongly waves of each direction and fineness come through the kernel: coarse ones in the middle, the "
        "finest at the rim. What is dark has to be guessed."
    )
    texts = ("What the kernel lets through", caption, alt)
    return _fields_plot(texts, fields, 0.5, "cycles per pixel", limits, "viridis", "log₁₀ σ / σmax")


def _fields_plot(
    texts: tuple[str, str, str],
    fields: dict[str, Tensor],
    reach: float,
    unit: str,
    limits: tuple[float, float],
    color_map: str,
    label: str,
) -> Plot:
    """Draw fields about a center: of one axis as lines, of two as pictures, of three as two planes through it.

    Args:
        texts: heading, caption and description of the plot.
        fields: by name, all of one shape `(n, ...)` with one to three axes.
        reach: from the center to either end of an axis, in its unit.
        unit: of the axes.
        limits: the values of the darkest and the lightest shade.
        color_map: of matplotlib.
        label: what the values are.
    """
    panels = [panel for name, values in fields.items() for panel in _planes(name, values)]
    is_signal = panels[0][2].ndim == 1

    def draw_lines(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        for (name, values), color in zip(fields.items(), (theme.first, theme.second), strict=False):
            places = torch.linspace(-reach, reach, len(values) + 1)
            axes.plot((places[:-1] + places[1:]).numpy() / 2, values.numpy(), color=color, label=name)
        style(axes, theme, unit, label)

    def draw_planes(figure: Figure, theme: Theme) -> None:
        for number, (name, direction, values) in enumerate(panels, start=1):
            axes = figure.add_subplot(1, len(panels), number)
            is_labeled = number == 1 or direction != panels[number - 2][1]
            style(axes, theme, f"across, {unit}", f"{direction}, {unit}" if is_labeled else "")
            extent, (low, high) = (-reach, reach, reach, -reach), limits
            image = axes.imshow(values.numpy(), cmap=color_map, vmin=low, vmax=high, extent=extent, aspect="auto")
            axes.set_box_aspect(1)
            axes.grid(visible=False)
            if len(fields) > 1:
                axes.set_title(name, color=theme.ink, fontsize=10)
        color_bar(figure, image, theme, label)

    size = (6.0, 3.6 if len(panels) == 1 else 2.9)
    return draw_plot(*texts, draw_lines if is_signal else draw_planes, size)


def _planes(name: str, values: Tensor) -> list[tuple[str, str, Tensor]]:
    """Give a field, or two planes through the center of one of three axes, with the direction of their rows."""
    if values.ndim < 3:
        return [(name, "down", values)]
    return [(name, "down", values[values.shape[0] // 2]), (name, "deep", values[:, values.shape[1] // 2])]


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
    alt = (
        f"Neighbors in the residual correlate by up to {whiteness.largest:.2g}; Q = {whiteness.statistic:.4g} over "
        f"{whiteness.n_lags} lags is {whiteness.z_score:.3g} standard deviations from white noise."
    )
    caption = (
        "How the residual at one pixel correlates with that some pixels away. Noise that nothing was taken from gives "
        "an even field about zero; what the estimate has taken up leaves a pattern."
    )
    texts, fields = ("The residual's neighbors", caption, alt), {"correlation": correlation}
    return _fields_plot(texts, fields, lag + 0.5, "lag in pixels", (-span, span), "cividis", "correlation")


def _draw_noise(axes: Axes, theme: Theme, tests: ResidualTests) -> None:
    edges, noise = tests.histogram.edges, tests.noise
    assert noise
    total, width = sum(tests.histogram.counts), edges[1] - edges[0]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(edges)]
    heights = [
        total * width * math.exp(-0.5 * (middle / noise) ** 2) / (noise * math.sqrt(2 * math.pi)) for middle in middles
    ]
    axes.plot(middles, heights, color=theme.second, linewidth=1.6, label="noise of the data")
