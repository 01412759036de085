"""What was learned as one page, with its learning curve, that carries everything inside."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from deconv_cli.report.drawing import Plot, Theme, draw_plot, legend, style
from deconv_cli.report.learning_record import LearningRun, describe_learning
from deconv_cli.report.page_pictures import ScaledImage, draw_pictures, taps_plot
from deconv_cli.report.page_template import fill_template
from deconv_cli.vocabulary import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor


def render_learning(run: LearningRun) -> str:
    """Write the page as HTML; names of files are escaped, no script runs, and nothing is fetched."""
    image = _first_taps(run)
    is_signal = image.values.ndim == 1
    return fill_template(
        "learning.html",
        describe_learning(run),
        title=run.title,
        done=_done(run),
        warnings=run.learned.doubts,
        line=taps_plot(image.values, image.caption) if is_signal else None,
        kernel=None if is_signal else draw_pictures([image])[0][0],
        curve=curve_plot(run),
        key_numbers=run.rows(),
    )


def curve_plot(run: LearningRun) -> Plot:
    """Draw the loss after each epoch, where it learned and where outputs were held out."""
    curve = run.learned.curve
    steps = [point.step for point in curve]
    lines = {"learned from": [p.training for p in curve], "held out": [p.held_out for p in curve]}

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        for (name, values), color in zip(lines.items(), (theme.first, theme.second), strict=True):
            axes.plot(steps, values, "o-", color=color, markersize=4, linewidth=1.5, label=name)
        if all(value > 0 for values in lines.values() for value in values):
            axes.set_yscale("log")
        axes.locator_params(axis="x", integer=True)
        style(axes, theme, "epoch", f"loss ({run.loss})")
        legend(axes, theme)

    parts = [f"{name} from {values[0]:.4g} to {values[-1]:.4g}" for name, values in lines.items()]
    caption = (
        "The loss after each pass over the data. Where the line of what is held out turns up again while the other "
        "goes on falling, noise is being learned."
    )
    return draw_plot("Learning curve", caption, f"Over {counted(len(curve) - 1, 'epoch')}: {'; '.join(parts)}.", draw)


def _first_taps(run: LearningRun) -> ScaledImage:
    """Give the first kernel, of three axes its middle plane."""
    taps: Tensor = run.learned.taps
    n_axes = run.n_axes
    n_kernels = math.prod(taps.shape[: taps.ndim - n_axes])
    first = taps.flatten(0, -n_axes - 1)[0] if n_kernels > 1 or taps.ndim > n_axes else taps
    plane = first[first.shape[0] // 2] if n_axes == 3 else first
    which = f"The first of {n_kernels} kernels. " if n_kernels > 1 else ""
    middle = "Its middle plane. " if n_axes == 3 else ""
    caption = f"{which}{middle}Every tap a square, as a cross-correlation applies it."
    low, high = min(float(plane.min()), 0.0), max(float(plane.max()), 0.0)
    return ScaledImage("Kernel", plane, low, high if high > low else low + 1.0, caption, "weight", "viridis")


def _done(run: LearningRun) -> str:
    n, what = len(run.inputs), "filters that undo a blur" if run.is_inverse else "a kernel"
    pairs = f"{counted(n // 2, 'pair')} of pictures"
    source = f"{counted(n, 'sharp picture')}, blurred by {run.kernel}" if run.kernel else pairs
    noise = f" with noise {run.noise}" if run.noise else ""
    return f"Learned from {source}{noise}: {what}, for the loss {run.loss}, {run.light}."
