"""The kernel as a page shows it: drawn, and how sure it is where it was found in the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deconv_cli.kernels.blind.estimate import NO_BLUR, KernelEstimate
from deconv_cli.report.drawing import Plot, Theme, draw_plot, style
from deconv_cli.report.key_numbers import Row
from deconv_cli.report.orthogonal_cuts import Cuts, draw_center
from deconv_cli.report.page_pictures import PagePicture, ScaledImage, draw_pictures, taps_plot
from deconv_cli.report.run import KernelInput
from deconv_cli.vocabulary import format_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_UNITS = {"ANGLE": "°", "RADIUS": " pixels", "SIGMA": " pixels", "LENGTH": " pixels", "FWHM": " pixels"}


@dataclass(frozen=True, eq=False)
class KernelSection:
    """What a page says of a kernel.

    Attributes:
        picture: the kernel as what becomes of a point of light; `None` where it spans three axes, or one.
        cuts: the same of one of three axes.
        line: the same of one of one axis.
        origin: where it came from.
        numbers: what was found, with its standard errors, and how it compares; empty for a kernel that was given.
        candidates: how likely each family is; `None` likewise.
    """

    picture: PagePicture | None
    cuts: Cuts | None
    line: Plot | None
    origin: str
    numbers: tuple[Row, ...]
    candidates: Plot | None


def describe_kernel_section(source: KernelInput, spacing: Sequence[float] | None = None) -> KernelSection:
    """Draw a kernel, the first where there are several, and say where it came from.

    Args:
        source: the kernel.
        spacing: distances of the image's samples along the axes of space, where they are known.
    """
    found = source.estimate
    origin = f"{source.path}, {format_size(source.shape)} taps"
    origin = f"Given: {origin}." if found is None else f"Found in the picture itself: {origin}."
    image, n_axes = _image(source), source.kernel.n_axes
    return KernelSection(
        picture=draw_pictures([image])[0][0] if n_axes == 2 else None,
        cuts=draw_center(image, spacing) if n_axes == 3 else None,
        line=taps_plot(image.values, image.caption) if n_axes == 1 else None,
        origin=origin,
        numbers=() if found is None else tuple(_numbers(found)),
        candidates=None if found is None else _candidates_plot(found),
    )


def _image(source: KernelInput) -> ScaledImage:
    taps = source.kernel.taps.detach().cpu()
    n_kernels = taps.shape[0] * taps.shape[1]
    caption = "What becomes of a point of light, every tap a square."
    if n_kernels > 1:
        caption = f"The first of {n_kernels} kernels. {caption}"
    # What a cross-correlation makes of a point is its taps, turned by half a circle.
    values = taps[0, 0].flip(tuple(range(source.kernel.n_axes)))
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    return ScaledImage("Kernel", values, low, high, caption, "share of the light", "viridis")


def _numbers(found: KernelEstimate) -> list[Row]:
    rows: list[Row] = [("Family", found.family, "the shape that makes the spectrum of the picture likeliest")]
    for parameter in found.parameters:
        unit = _UNITS.get(parameter.name, "")
        meaning = "with its standard error" if parameter.error else "a count, which has no error"
        rows.append((parameter.name.capitalize(), f"{parameter.text}{unit}", meaning))
    if found.runner_up is not None:
        rows += [
            ("Runner-up", found.runner_up.text, "the best kernel of any other family"),
            (
                "Against the runner-up",
                f"{found.log_likelihood_ratio:.3g}",
                "logarithm of how many times likelier the kernel is; below about 3 the two are hard to tell apart",
            ),
        ]
    return [*rows, ("Against no blur", f"{found.evidence:.4g}", "the same, for a picture that was never blurred")]


def _candidates_plot(found: KernelEstimate) -> Plot:
    """Draw a bar for each family: how far its best kernel is behind the likeliest."""
    best = found.candidates[0].misfit
    behind = [(c.text if c.family != NO_BLUR else "no blur", c.misfit - best) for c in found.candidates]

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        names, values = zip(*behind, strict=True)
        places = range(len(names))
        axes.barh(places, values, color=theme.first, height=0.6)
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.set_xscale("symlog", linthresh=1.0)
        axes.set_xlim(left=0)
        for place, value in zip(places, values, strict=True):
            axes.annotate(
                f"{value:.3g}",
                (value, place),
                (4, 0),
                textcoords="offset points",
                va="center",
                color=theme.ink,
                fontsize=9,
            )
        axes.margins(x=0.15)
        style(axes, theme, "logarithm of the likelihood, below the likeliest", "")

    alt = "Below the likeliest: " + "; ".join(f"{name} by {value:.3g}" for name, value in behind) + "."
    caption = "The best kernel of each family. The shorter the bar, the likelier; 10 is a factor of 20 000."
    return draw_plot("Candidates", caption, alt, draw, (6.0, 0.9 + 0.3 * len(behind)))
