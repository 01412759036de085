"""What was learned: as JSON, as rows for a table, and as one page with its learning curve."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deconv_cli.kernels.nonnegative_taps import describe_raised, raised_detail
from deconv_cli.report.drawing import Plot, Theme, draw_plot, legend, style
from deconv_cli.report.key_numbers import Row
from deconv_cli.report.page import fill_template
from deconv_cli.report.page_pictures import ScaledImage, draw_pictures, taps_plot
from deconv_cli.report.record import SCHEMA, Record, finite_or_none
from deconv_cli.report.run_record import describe_versions
from deconv_cli.vocabulary import counted, format_percent, format_size
from deconv_cli.workflows.fit_kernel import KernelFit
from deconv_cli.workflows.inverse_filters import HeldOutQuality
from deconv_cli.workflows.learn_kernel import KernelLearning
from deconv_cli.workflows.learning_settings import LearningSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class LearningRun:
    """A finished run of `deconv kernel learn`.

    Attributes:
        inputs: paths of the pictures.
        settings: how it learned.
        is_inverse: filters were learned that undo a blur.
        kernel: what blurred the pictures, as it was typed; `None` where they came in pairs.
        noise: what was added to them.
        loss: as it was typed.
        light: in what the blur acts.
        learned: the kernel, or the filters.
        quality: of filters, where outputs were held out.
    """

    inputs: tuple[str, ...]
    settings: LearningSettings
    is_inverse: bool
    kernel: str | None
    noise: str | None
    loss: str
    light: str
    learned: KernelLearning
    quality: HeldOutQuality | None

    @property
    def title(self) -> str:
        """The last picture, as pairs end with the blurred one."""
        return Path(self.inputs[-1]).name

    @property
    def n_axes(self) -> int:
        """Axes of space."""
        return self.learned.taps.ndim - {"shared": 0, "each": 1, "mix": 2}[self.settings.channels]

    @property
    def notes(self) -> tuple[str, ...]:
        """What is odd about a kernel that is not doubted, a sentence each without its full stop."""
        if self.is_inverse or self.learned.doubts:
            return ()
        change = self.learned.taps - self.learned.held_out_taps
        return describe_raised(raised_detail(self.learned.taps, change, self.n_axes))

    def rows(self) -> list[Row]:
        """Give the numbers that matter, each with what it means."""
        found, curve = self.learned, self.learned.curve
        taps = found.taps
        rows: list[Row] = [
            (
                "taps",
                f"{format_size(taps.shape)}, sum {float(taps.sum()):.6g}, largest {float(taps.max()):.4g}",
                "filters that turn blurred into sharp"
                if self.is_inverse
                else "the kernel that turns sharp into blurred",
            ),
            (
                "loss",
                f"{self.loss}: {curve[-1].training:.4g}, from {curve[0].training:.4g}; {curve[-1].held_out:.4g} where "
                "outputs were held out",
                "the mean over what was learned from, and over every fifth stripe of outputs, which was not",
            ),
            ("ended", _ending(found), "the descent ends when what is held out is predicted no better"),
            (
                "residual",
                describe_residual(found),
                "root of the squares that are left over, in parts of those of the data",
            ),
            ("λ", ", ".join(f"{value:.2g}" for value in found.lam), "weight of the penalty on the taps"),
            ("light", self.light, "in what the blur acts"),
        ]
        if self.quality is not None:
            rows.insert(3, ("held-out PSNR", _psnr(self.quality), "of the largest sharp sample, over the error"))
        return rows


def describe_learning(run: LearningRun) -> Record:
    """Describe a run, but for the taps, which are written into a file."""
    found, quality = run.learned, run.quality
    return {
        "schema": SCHEMA,
        "command": "kernel learn",
        "input": list(run.inputs),
        "is_inverse": run.is_inverse,
        "kernel": run.kernel,
        "noise": run.noise,
        "light": run.light,
        **{name: value for name, value in run.settings.describe().items() if name != "lam"},
        "loss": run.loss,
        "lambda": list(found.lam),
        "shape": list(found.taps.shape),
        "sum": float(found.taps.sum()),
        "samples": found.n_data,
        "residual": found.residual,
        "held_out_residual": finite_or_none(found.held_out),
        "is_overfitted": found.is_overfitted,
        "certificate": found.certificates[-1] if found.certificates else None,
        "certificates": list(found.certificates),
        "curve": [{"epoch": p.step, "training": p.training, "held_out": p.held_out} for p in found.curve],
        "psnr": None
        if quality is None
        else {"learned": quality.learned, "blurred": quality.blurred, "tikhonov": quality.tikhonov},
        "doubts": list(found.doubts),
        "notes": list(run.notes),
        "versions": describe_versions(),
    }


def _ending(found: KernelLearning) -> str:
    epochs = f"after {counted(len(found.curve) - 1, 'epoch')}"
    if found.is_overfitted:
        return f"{epochs}, with the kernel that predicted best what was held out, which came to be predicted worse"
    rounds, distance = len(found.certificates) - 1, found.certificates[-1]
    return f"{epochs} and {counted(rounds, 'round')} over all data, {distance:.1g} from the minimum"


def describe_residual(found: KernelFit | KernelLearning) -> str:
    """Say how much of the data a kernel that was fitted or learned leaves over."""
    held_out = (
        f", {format_percent(found.held_out, 3)} where they were held out" if math.isfinite(found.held_out) else ""
    )
    return f"{format_percent(found.residual, 3)} of the data{held_out}"


def _psnr(quality: HeldOutQuality) -> str:
    others = {"blurred": quality.blurred, "by Tikhonov's estimate": quality.tikhonov}
    compared = "".join(f", {value:.2f} dB {name}" for name, value in others.items() if value is not None)
    return f"{quality.learned:.2f} dB{compared}"


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
