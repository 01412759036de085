"""Sections of a page: the kernel, and the blocks of a large picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deconv_cli.blocks.block_grid import Interval
from deconv_cli.blocks.block_reconstruction import BlockReconstruction
from deconv_cli.kernels.blind.estimate import KernelEstimate
from deconv_cli.noise_model import describe_noise
from deconv_cli.report.orthogonal_cuts import Cuts, draw_center
from deconv_cli.report.page_pictures import PagePicture, ScaledImage, draw_pictures, taps_plot
from deconv_cli.report.plots import Plot, Theme, draw_plot, style
from deconv_cli.report.run import KernelInput
from deconv_cli.vocabulary import counted, format_memory, format_percent, format_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = tuple[str, str, str]
"""Name, value, meaning."""

_UNITS = {"ANGLE": "°", "RADIUS": " pixels", "SIGMA": " pixels", "LENGTH": " pixels", "FWHM": " pixels"}


@dataclass(frozen=True, eq=False)
class KernelSection:
    """The kernel on a page.

    Attributes:
        picture: the image of a point of light, for two axes.
        cuts: the same for three axes.
        line: the same for one axis.
        origin: where the kernel came from.
        numbers: of an estimated kernel, with standard errors and the runner-up.
    """

    picture: PagePicture | None
    cuts: Cuts | None
    line: Plot | None
    origin: str
    numbers: tuple[Row, ...]


def describe_kernel_section(source: KernelInput, spacing: Sequence[float] | None = None) -> KernelSection:
    """Draw a kernel, or the first of several, and say where it came from; `spacing` is that of the image's samples."""
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
    )


def _image(source: KernelInput) -> ScaledImage:
    taps = source.kernel.taps.detach().cpu()
    n_kernels = taps.shape[0] * taps.shape[1]
    caption = "The image of a point of light, every tap a square."
    if n_kernels > 1:
        caption = f"The first of {n_kernels} kernels. {caption}"
    # A cross-correlation turns its taps by half a circle.
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


MAX_LINES = 64
"""Most lines between blocks along an axis that are drawn."""


@dataclass(frozen=True, eq=False)
class PlanSection:
    """The blocks on a page: what was planned and measured, and the blocks over the frame, but for signals."""

    numbers: list[Row]
    grid: Plot | None


def describe_plan_section(found: BlockReconstruction, pieces: Sequence[Sequence[Interval]]) -> PlanSection:
    """Describe how a picture was cut, and where the pieces on the page lie along each axis of space."""
    n_axes = found.task.problem.layout.dimensions
    return PlanSection(_block_numbers(found), _grid_plot(found, pieces) if n_axes > 1 else None)


def _block_numbers(found: BlockReconstruction) -> list[Row]:
    summary, halo, grid = found.summary, found.plan.halo, found.task.grid
    assert summary is not None
    measured = ("not measured", "there are none, or no block lies across any")
    if found.seam is not None:
        where = f"the most at {counted(summary.n_seams, 'place')}, by blocks that lie across the seams"
        measured = f"{found.seam:.2g} of the range", where
    noise = describe_noise(found.plan.choices.noise)
    rows = [
        (
            "Blocks",
            f"{grid.n_blocks} of {format_size(grid.along_space(grid.core))}",
            "each restored with a halo around it",
        ),
        ("Halo", str(halo), "pixels around a block that are restored with it"),
        ("Memory", format_memory(found.plan.block_bytes), "of a block, about"),
        (
            "Seams, expected",
            f"{halo.predicted:.2g} of the range",
            "largest difference of a block from the whole, measured on pieces that were cut and not cut",
        ),
        ("Seams, measured", *measured),
        (
            "Residual",
            f"{summary.residual_rms:.3g} rms",
            f"{format_percent(summary.residual, 3)} of the data, over all blocks",
        ),
    ]
    return [*rows, ("Noise", noise, "of the pieces")] if noise else rows


def _grid_plot(found: BlockReconstruction, pieces: Sequence[Sequence[Interval]]) -> Plot:
    """Draw the blocks over rows and columns, the halo of one in the middle, and the pieces on the page."""
    grid, (height, width) = found.task.grid, found.task.problem.image_size[-2:]
    rows, columns = (grid.core[grid.layout.axes.index(letter)] for letter in "YX")
    lines = [(range(step, length, step), length) for step, length in ((rows, height), (columns, width))]
    halo = found.plan.halo.halo[-2:]
    top, left = (length // 2 // step * step for step, length in ((rows, height), (columns, width)))

    def draw(figure: Figure, theme: Theme) -> None:
        from matplotlib.patches import Rectangle

        axes = figure.add_subplot()
        style(axes, theme, "columns", "rows")
        axes.grid(visible=False)
        around = (left - halo[1], top - halo[0]), columns + 2 * halo[1], rows + 2 * halo[0]
        axes.add_patch(Rectangle(*around, color=theme.second, alpha=0.3, linewidth=0))
        if max(len(places) for places, _ in lines) <= MAX_LINES:
            axes.hlines(lines[0][0], 0, width, color=theme.ink, linewidth=0.6)
            axes.vlines(lines[1][0], 0, height, color=theme.ink, linewidth=0.6)
        for piece in pieces:
            (first, last), (start, stop) = piece[-2:]
            size = stop - start, last - first
            axes.add_patch(Rectangle((start, first), *size, edgecolor=theme.first, fill=False, linewidth=2))
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        axes.set_aspect("equal")

    n_along = tuple(len(places) + 1 for places, _ in lines)
    alt = f"{format_size(n_along)} blocks over {height} rows and {width} columns."
    caption = (
        "The blocks over the frame. Orange: what is read for one of them, with its halo; blue: the pieces "
        "that are shown pixel by pixel."
    )
    return draw_plot("The plan", caption, alt, draw, (6.0, 4.2))
