"""A chain of layers that was undone, as JSON and as one page: the input found, and the residual by channel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from deconv_cli.chains.chain_inversion import ChainInversion
from deconv_cli.report.page import fill_template
from deconv_cli.report.page_pictures import ScaledImage, display_range, draw_pictures, signals_plot
from deconv_cli.report.page_sections import Row
from deconv_cli.report.plots import Plot, Theme, draw_plot, legend, style
from deconv_cli.report.reconstruction_record import SCHEMA, Record
from deconv_cli.report.run import Environment, InputFile, OutputFile
from deconv_cli.report.run_record import describe_environment
from deconv_cli.vocabulary import counted, format_percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ModelInput:
    """Where a chain came from: the file with the model or its weights, the code that was named, and the layers."""

    path: str
    kind: str
    sha256: str
    code: str | None
    layers: str


@dataclass(frozen=True, eq=False)
class ChainRun:
    """A finished run; `rerun` is the command line that makes the same again."""

    source: InputFile
    model: ModelInput
    output: OutputFile
    inversion: ChainInversion
    notes: tuple[str, ...]
    environment: Environment
    rerun: str


def describe_chain_run(run: ChainRun) -> Record:
    """Write a run as a JSON object."""
    result, solution = run.inversion, run.inversion.solution
    return {
        "schema": SCHEMA,
        "command": "invert",
        "inputs": [{name: value for name, value in vars(run.source).items() if name != "is_picture"}],
        "model": dict(vars(run.model)),
        "layers": [dict(vars(layer)) for layer in result.layers],
        "lambda": result.lam,
        "penalty": result.penalty,
        "objective": solution.objective,
        "solver": {
            "method": result.method.name.lower(),
            "description": result.method.value,
            "status": solution.status.name.lower(),
            "message": solution.ending,
            "iterations": solution.n_iterations,
            "certificate": solution.certificate,
        },
        "relative_residual": result.relative_residual,
        "determined": dict(vars(result.determined)),
        "is_trusted": not result.doubts,
        "doubts": [{"reason": doubt.reason.value, "sentence": doubt.sentence} for doubt in result.doubts],
        "output": dict(vars(run.output)),
        "notes": list(run.notes),
        **describe_environment(run.environment),
        "rerun": run.rerun,
    }


def render_chain(run: ChainRun, data: Tensor) -> str:
    """Write the page as HTML; names of files and layers are escaped, no script runs, and nothing is fetched.

    Args:
        run: what was done.
        data: the activation, shape `(B, C, *size)`; of several the first is shown.
    """
    result = run.inversion
    image, residual = result.image[0].cpu(), result.residual[0].cpu()
    images = [_input(image), *_left(residual)]
    n_images = len(result.image)
    return fill_template(
        "chain.html",
        describe_chain_run(run),
        title=Path(run.source.path).name,
        done=f"{run.source.path} was taken back through the layers {run.model.layers} of {run.model.path}: "
        f"{result.method.value}." + (f" Shown is the first of {n_images} inputs." if n_images > 1 else ""),
        warnings=[doubt.sentence for doubt in result.doubts],
        line=signals_plot(images[:1]) if image.ndim == 2 else None,
        pictures=draw_pictures([each for each in images if each.values.ndim > 1])[0],
        channels=channels_plot(data[0].cpu(), residual),
        key_numbers=_key_numbers(run),
        layers=[(layer.name, layer.treatment, layer.description) for layer in result.layers],
        notes=run.notes,
        rerun=run.rerun,
    )


def channels_plot(data: Tensor, residual: Tensor) -> Plot:
    """Draw how large each channel of an activation is, and what is left of it, for both of shape `(C, *size)`."""
    sizes = {
        "activation": data.double().flatten(1).square().mean(1).sqrt().tolist(),
        "residual": residual.double().flatten(1).square().mean(1).sqrt().tolist(),
    }

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        for (name, values), color in zip(sizes.items(), (theme.first, theme.second), strict=True):
            axes.plot(values, ".", color=color, label=name)
        if any(value > 0 for values in sizes.values() for value in values):
            axes.set_yscale("log")
        style(axes, theme, "channel", "root mean square")
        legend(axes, theme)

    caption = (
        "Each channel of the activation, and what is left of it when the layers are run on the input found. Where "
        "both are as large, that input does not explain the channel."
    )
    largest = max(range(len(sizes["residual"])), key=lambda n: sizes["residual"][n])
    alt = f"Of {len(data)} channels number {largest} leaves most: {sizes['residual'][largest]:.3g}."
    return draw_plot("What is left, by channel", caption, alt, draw, (12.0, 3.6))


def _input(image: Tensor) -> ScaledImage:
    """Show an input `(C, *size)`: in colors, or its first channel; of a stack the middle plane."""
    is_color = image.ndim == 3 and len(image) == 3
    shown = image if is_color else image[0]
    shown = shown[len(shown) // 2] if image.ndim == 4 else shown
    which = "" if is_color or len(image) == 1 else f" The first of {len(image)} channels."
    low, high = display_range(shown)
    return ScaledImage("Estimate", shown, low, high, f"What the layers were shown, as found.{which}", "of the input")


def _left(residual: Tensor) -> list[ScaledImage]:
    """Show the residual `(C, *size)` over all channels; of a stack its middle plane, of a signal nothing."""
    values = residual.double().square().mean(0).sqrt()
    values = values[len(values) // 2] if values.ndim == 3 else values
    if values.ndim != 2:
        return []
    text = "The activation less what the layers make of the estimate, over all channels."
    return [ScaledImage("Residual", values, 0.0, display_range(values)[1], text, "of the activation", "cividis")]


def _key_numbers(run: ChainRun) -> list[Row]:
    result, solution = run.inversion, run.inversion.solution
    share = result.determined
    how = "by the rank of the derivative" if share.is_exact else "as conjugate gradients show it"
    return [
        ("Residual", format_percent(result.relative_residual, 3), "of the data, through the layers themselves"),
        ("Determined", format_percent(share.share, 3), f"of the input's {share.n_dimensions} numbers, {how}"),
        ("Solver", counted(solution.n_iterations, "iteration"), solution.ending),
        ("Certificate", f"{solution.certificate:.2g}", "relative size of the gradient; 0 where nothing small helps"),
        ("Amplification", f"{result.amplification:.3g}", "how many times larger the estimate is than the data need"),
    ]
