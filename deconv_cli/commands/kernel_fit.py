"""`deconv kernel fit`: the kernel between pairs of sharp and blurred pictures, by least squares or another loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deconv_cli.commands.console import print_note, print_table, print_warning
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.commands.kernel_output import (
    AnswerOptions,
    OutputFile,
    check_kernel_output,
    print_kernel,
    without_paths,
    write_kernel,
)
from deconv_cli.commands.pair_options import PairOptions, SizeOption, list_pairs, parse_size
from deconv_cli.commands.user_code import describe_warnings, running_user_code
from deconv_cli.errors import UsageError
from deconv_cli.parts import LOSSES
from deconv_cli.vocabulary import counted, format_percent, format_size

if TYPE_CHECKING:
    from deconv_cli.kernels.fit.loss_functions import Loss
    from deconv_cli.workflows.fit_kernel import KernelFit

EXAMPLE = (
    "Example: deconv kernel fit sample_images/camera.png sample_images/camera_blurred.png --size 19,19 -o fitted.npy"
)
_CUT = "the outermost taps are no noise: the kernel goes on beyond them, so that the bars are too small; enlarge --size"


def fit(
    pairs: Annotated[
        list[Path],
        typer.Argument(
            metavar="SHARP BLURRED...",
            help="A sharp picture or tensor and the same blurred; further pairs may follow. Two folders are matched by "
            "the names of their files.",
            show_default=False,
        ),
    ],
    size: SizeOption,
    options: PairOptions,
    printed: AnswerOptions,
    output: OutputFile = None,
    errors: Annotated[
        Path | None,
        typer.Option(
            "--errors",
            metavar="FILE",
            help="Write the error bar of every tap, one standard deviation.",
            show_default=False,
        ),
    ] = None,
    loss: Annotated[
        str,
        typer.Option(
            "--loss",
            metavar="NAME|FILE.py:FUNCTION",
            help=f"What is minimized: {', '.join(LOSSES)} (huber:2.5 turns straight at 2.5, in units of the samples), "
            "or a function of a prediction and the data in your own file, whose code is run. Error bars are those of "
            "the squared loss alone.",
        ),
    ] = "squared",
) -> None:
    """Fit the kernel that blurred sharp pictures, with an error bar for every tap."""
    from deconv_cli.workflows.fit_kernel import fit_kernel

    named = list_pairs(pairs)
    for path in (output, errors):
        if path is not None:
            check_kernel_output(path, named[0][0], force=printed.force)
    if output is not None and errors is not None and output.resolve() == errors.resolve():
        raise UsageError(f"--errors and --output would both be written to '{output}'; give two names.")
    if errors is not None and loss != "squared":
        raise UsageError(f"--errors writes the error bars of the squared loss, but --loss is {loss}; leave one out.")
    taps_size = parse_size(size)
    read = [options.read(pair, len(taps_size)) for pair in named]
    both = [(sharp, blurred) for (sharp, blurred), _ in read]
    with running_user_code(is_silent=True) as (_, caught):
        found = fit_kernel(both, taps_size, **options.choices(), loss=_load_loss(loss))
    doubts, is_cut = found.doubts(len(taps_size)), found.is_cut(len(taps_size))
    cut = [_CUT] if is_cut else []
    notes = () if doubts else found.notes(len(taps_size))
    record = {
        "schema": 1,
        "command": "kernel fit",
        "is_cut": is_cut,
        "doubts": list(doubts),
        "notes": list(notes),
        "input": [str(path) for pair in named for path in pair],
        "light": read[0][1],
        **{name: value for name, value in options.choices().items() if name != "lam"},
        "loss": loss,
        **_describe(found),
        "output": None if output is None else str(output),
    }
    for path, values in ((output, found.taps), (errors, found.errors)):
        if path is not None and values is not None:
            write_kernel(path, values, without_paths(record) | {"loss": Path(loss).name})
    if not printed.quiet:
        print_table(str(named[0][1]), _rows(found, read[0][1], loss))
        for line in describe_warnings(caught):
            print_note(line)
    for doubt in doubts or cut:
        print_warning(doubt)
    for note in notes:
        print_note(note)
    print_kernel(found.taps, record, output, printed)
    if doubts:
        raise typer.Exit(ExitCode.UNTRUSTWORTHY)


def _load_loss(text: str) -> str | Loss:
    """Give the name of a loss, or the function in a file.

    Raises:
        UsageError: neither.
    """
    if text.partition(":")[0] in LOSSES or ":" not in text:
        return text
    from deconv_cli.models.named_code import load_named

    loss: Loss = load_named(text, "--loss").value
    return loss


def _describe(found: KernelFit) -> dict[str, Any]:
    errors = found.errors
    return {
        "shape": list(found.taps.shape),
        "sum": float(found.taps.sum()),
        "lambda": list(found.lam),
        "noise_sigma": list(found.sigma),
        "residual": found.residual,
        "held_out_residual": found.held_out if math.isfinite(found.held_out) else None,
        "held_out_unexplained": found.unexplained if math.isfinite(found.unexplained) else None,
        "samples": found.n_data,
        "effective_taps": found.n_effective,
        "certificate": found.certificate,
        "error": None
        if errors is None
        else {
            "median": float(errors.median()),
            "largest": float(errors.max()),
            "relative": float(errors.norm() / found.taps.norm()),
        },
    }


def _rows(found: KernelFit, light: str, loss: str) -> list[tuple[str, str]]:
    shape, residual = format_size(found.taps.shape), f"{format_percent(found.residual, 3)} of the data"
    if math.isfinite(found.held_out):
        residual += f", {format_percent(found.held_out, 3)} where they were held out"
    if found.errors is None:
        how = ("loss", f"{loss}, {found.certificate:.1g} from the minimum")
    else:
        bars = f"± {float(found.errors.median()):.2g} in the median, {float(found.errors.max()):.2g} at most"
        how = ("error bars", bars)
    return [
        ("taps", f"{shape}, sum {float(found.taps.sum()):.6g}, largest {float(found.taps.max()):.4g}"),
        how,
        ("determined", f"{found.n_effective:.0f} of {found.taps.numel()} taps, by {counted(found.n_data, 'sample')}"),
        ("noise", f"σ {', '.join(f'{value:.3g}' for value in found.sigma)}"),
        ("residual", residual),
        ("λ", f"{', '.join(f'{value:.2g}' for value in found.lam)}: the likeliest"),
        ("light", light),
    ]
