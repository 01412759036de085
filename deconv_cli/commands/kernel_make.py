"""`deconv kernel make`: a kernel by a formula."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deconv_cli.commands.console import print_table
from deconv_cli.commands.kernel_output import OutputFile, check_kernel_output, print_kernel, without_paths, write_kernel
from deconv_cli.commands.option_groups import ForceOption, JsonOption, QuietOption, ShowOption
from deconv_cli.parts import KERNEL_SOURCES

EXAMPLE = "Example: deconv kernel make 'disk:4*motion:9@30' -o blur.npy --show"


def make(
    words: Annotated[
        str,
        typer.Argument(
            metavar="WORDS",
            help=f"A formula ({', '.join(KERNEL_SOURCES)}) with its numbers, as disk:5.2, or a product of several, one "
            "blur after another, as 'disk:4*motion:9@30'.",
            show_default=False,
        ),
    ],
    output: OutputFile = None,
    force: ForceOption = False,
    show: ShowOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make a kernel by a formula: centered, of sum 1, each tap the integral over its pixel."""
    from deconv_cli.kernels.sources.kernel_source import make_kernel

    if output is not None:
        check_kernel_output(output, Path.cwd(), force=force)
    taps = make_kernel(words)
    record = {
        "schema": 1,
        "command": "kernel make",
        "kernel": words,
        "shape": list(taps.shape),
        "sum": float(taps.sum()),
        "largest": float(taps.max()),
        "output": None if output is None else str(output),
    }
    if output is not None:
        write_kernel(output, taps, without_paths(record))
    if not quiet:
        size = "×".join(map(str, taps.shape))
        print_table(words, [("taps", f"{size}, sum {float(taps.sum()):.6g}, largest {float(taps.max()):.4g}")])
    print_kernel(taps, record, output, show=show, as_json=as_json)
