"""How a picture was cut, as a page shows it: the grid over the frame, and what holds at the seams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deconv_cli.blocks.axis_cut import Interval
from deconv_cli.blocks.block_reconstruction import BlockReconstruction
from deconv_cli.noise_model import describe_noise
from deconv_cli.report.drawing import Plot, Theme, draw_plot, style
from deconv_cli.report.key_numbers import Row
from deconv_cli.vocabulary import counted, format_memory, format_percent, format_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_LINES = 64
"""Between blocks along an axis that are drawn: of more none could be told from the next."""


@dataclass(frozen=True, eq=False)
class PlanSection:
    """What a page says of the blocks.

    Attributes:
        numbers: what was planned and measured.
        grid: the blocks over the frame; `None` for signals.
    """

    numbers: list[Row]
    grid: Plot | None


def describe_plan_section(found: BlockReconstruction, pieces: Sequence[Sequence[Interval]]) -> PlanSection:
    """Say how a picture was cut.

    Args:
        found: what came of it.
        pieces: where those lie that the page shows, along each axis of space.
    """
    n_axes = found.task.problem.layout.dimensions
    return PlanSection(_numbers(found), _grid_plot(found, pieces) if n_axes > 1 else None)


def _numbers(found: BlockReconstruction) -> list[Row]:
    summary, halo, grid = found.summary, found.plan.halo, found.task.grid
    assert summary is not None
    core = tuple(grid.core[grid.layout.axes.index(letter)] for letter in grid.layout.space)
    measured = ("not measured", "as there are none, or no block lies across any")
    if found.seam is not None:
        where = f"the most at {counted(summary.n_seams, 'place')}, by blocks that lie across the seams"
        measured = f"{found.seam:.2g} of the range", where
    noise = describe_noise(found.plan.choices.noise)
    rows = [
        ("Blocks", f"{grid.n_blocks} of {format_size(core)}", "each restored by itself, with a halo around it"),
        ("Halo", str(halo), "pixels that are read around a block, and restored with it"),
        ("Memory", format_memory(found.plan.block_bytes), "that a block takes, about"),
        (
            "Seams, expected",
            f"{halo.predicted:.2g} of the range",
            "by which a block may differ from the whole at most, as pieces tell that were cut and not cut",
        ),
        ("Seams, measured", *measured),
        (
            "Residual",
            f"{summary.residual_rms:.3g} rms",
            f"{format_percent(summary.residual, 3)} of the data, over all blocks",
        ),
    ]
    return [*rows, ("Noise", noise, "as the pieces have it")] if noise else rows


def _grid_plot(found: BlockReconstruction, pieces: Sequence[Sequence[Interval]]) -> Plot:
    """Draw the blocks over rows and columns, with the halo of one in the middle and the pieces that are shown."""
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
        "that were looked at again, pixel by pixel."
    )
    return draw_plot("The plan", caption, alt, draw, (6.0, 4.2))
