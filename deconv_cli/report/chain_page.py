"""A chain of layers that was undone, as JSON and as one page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from deconv_cli.chains.chain_inversion import ChainInversion
from deconv_cli.prompt_sentences import with_options
from deconv_cli.report.page import Page, fill_page
from deconv_cli.report.page_pictures import ScaledImage, display_range, draw_lines, draw_picture
from deconv_cli.report.reconstruction_record import Record, describe_doubts
from deconv_cli.report.run import Environment, InputFile, OutputFile, describe_environment
from deconv_cli.report.shown_images import ShownImages
from deconv_cli.report.verdict import Row, Verdict, percent, varied
from deconv_cli.vocabulary import SCHEMA, counted, format_percent


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
            "message": result.ending,
            "iterations": solution.n_iterations,
            "certificate": solution.certificate,
        },
        "relative_residual": result.relative_residual,
        "determined": dict(vars(result.determined)),
        "is_trusted": not result.doubts,
        "doubts": describe_doubts(result.doubts),
        "output": dict(vars(run.output)),
        "notes": [with_options(note) for note in run.notes],
        **describe_environment(run.environment),
        "rerun": run.rerun,
    }


def render_chain(run: ChainRun, data: Tensor) -> str:
    """Write the page as HTML, as `fill_page` does.

    Args:
        run: what was done.
        data: the activation, shape `(B, C, *size)`; of several the first is shown.
    """
    result, solution = run.inversion, run.inversion.solution
    given = _shown("Input", data[0].cpu(), "The channel of the activation with the most contrast.")
    estimate = _shown("Estimate", result.image[0].cpu(), "The input of the layers, as found.")
    text = "Size of the difference between the activation and the activation of the estimate, over all channels."
    left = _shown("Residual", result.residual[0].cpu(), text, is_error=True)
    is_signal = result.image.ndim == 3
    pair, errors = ([image for image in some if image.values.ndim > 1] for some in ((given, estimate), (left,)))
    verdict = Verdict("good", "You can use this result: the layers turn it into the same activation again.")
    if result.doubts:
        verdict = Verdict("bad", "Do not use this result as it is: see the warning below.")
    done = f"{run.source.path} was inverted through the layers {run.model.layers} of {run.model.path}: "
    smoother = varied(run.rerun, "smoother", {"--lambda": f"{10 * result.lam or 0.001:.4g}"})
    n_images = len(result.image)
    page = Page(
        title=Path(run.source.path).name,
        verdict=verdict,
        numbers=_first_numbers(result),
        commands=[
            ("With less noise, and nearer to zero", smoother),
            ("The same command with every option", run.rerun),
        ],
        shown=ShownImages(
            scale=estimate,
            lines=draw_lines([estimate]) if is_signal else None,
            pair=() if is_signal else tuple(map(draw_picture, pair)),
            pictures=tuple(map(draw_picture, errors)),
            omission=f"The first of {n_images} inputs is shown." if n_images > 1 else None,
        ),
        warnings=[doubt.sentence for doubt in result.doubts],
        notes=run.notes,
        experts=[f"{done}{result.method.value}."],
        rows=[
            ("Solver", counted(solution.n_iterations, "iteration"), result.ending),
            ("Certificate", f"{solution.certificate:.2g}", "relative size of the gradient; 0 is solved exactly"),
            *((layer.name, layer.treatment, layer.description) for layer in result.layers),
        ],
    )
    return fill_page(page, describe_chain_run(run))


def _first_numbers(result: ChainInversion) -> list[Row]:
    found, n = result.determined.share, result.determined.n_dimensions
    others = "" if found > 1 - 1e-6 else "; the others are as small as possible"
    size = "the size that the activation needs; far above 1 is amplified noise."
    return [
        ("Determined", format_percent(found, 3), f"of the input's {n} numbers follow from the activation{others}."),
        ("Left over", percent(result.relative_residual), "of the activation that this input does not explain."),
        ("Size", f"{result.amplification:.2g} ×", size),
    ]


def _shown(name: str, image: Tensor, caption: str, *, is_error: bool = False) -> ScaledImage:
    """Show an image `(C, *size)`: in colors, or the channel with the most contrast; of a stack the middle plane.

    An error is shown by its size over all channels.
    """
    channel, n_channels = int(image.flatten(1).double().std(dim=1, correction=0).argmax()), len(image)
    is_color = image.ndim == 3 and n_channels == 3 and not is_error
    shown = image.double().square().mean(0).sqrt() if is_error else image if is_color else image[channel]
    shown = shown[len(shown) // 2] if image.ndim == 4 else shown
    which = "" if is_color or is_error or n_channels == 1 else f" Channel {channel + 1} of {n_channels}."
    low, high = display_range(shown)
    return ScaledImage(name, shown, 0.0 if is_error else low, high, f"{caption}{which}", "", false_colors=is_error)
