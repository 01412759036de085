"""Plots of the problem: the choice of λ, the data against the kernel, the kernel's spectrum."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from deconv_cli.diagnostics.lambda_choice import LambdaChoice
from deconv_cli.diagnostics.lambda_rules import LambdaCurve
from deconv_cli.diagnostics.picard import Picard
from deconv_cli.report.drawing import UNIT, Plot, Theme, draw_plot, legend, style
from deconv_cli.report.plots import CenteredField, FieldScale, draw_fields, n_panels
from deconv_cli.vocabulary import format_percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

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

    fields = [CenteredField(name, (values / sigma_max).clamp_min(floor).log10()) for name, values in shown]
    lowest = min(math.log10(floor), -0.01)
    scale = FieldScale(0.5, "cycles per pixel", lowest, 0.0, "viridis", "log₁₀ σ / σmax")

    def draw(figure: Figure, theme: Theme) -> None:
        draw_fields(figure, theme, fields, scale)

    weak = float((gains[1] < 0.01 * sigma_max).double().mean())
    alt = (
        f"The largest singular value is {sigma_max:.4g}, the smallest shown {float(gains.min()):.3g}; {100 * weak:.2g} "
        "% of the frequencies comes through less than a hundredth as strongly as the best."
    )
    caption = (
        "How strongly waves of each direction and fineness come through the kernel: coarse ones in the middle, the "
        "finest at the rim. What is dark has to be guessed."
    )
    return draw_plot("What the kernel lets through", caption, alt, draw, (6.0, 3.6 if n_panels(fields) == 1 else 2.9))
