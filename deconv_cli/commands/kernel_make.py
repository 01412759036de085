"""`deconv kernel make`: a kernel by a formula."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deconv_cli.commands.console import print_note, print_table
from deconv_cli.commands.kernel_output import (
    AnswerOptions,
    OutputFile,
    check_kernel_output,
    parse_numbers,
    print_kernel,
    without_paths,
    write_kernel,
)
from deconv_cli.errors import UsageError
from deconv_cli.parts import KERNEL_SOURCES
from deconv_cli.vocabulary import format_size

ACCURATE = 1e-3
"""Error of a transform that is none."""

EXAMPLE = "Example: deconv kernel make 'disk:4*motion:9@30' -o blur.npy --show"


def make(
    words: Annotated[
        str,
        typer.Argument(
            metavar="FORMULA",
            help=f"A formula ({', '.join(KERNEL_SOURCES)}) with its numbers, as disk:5.2, or a product of several, one "
            "blur after another, as 'disk:4*motion:9@30'; a factor shift:DOWN@RIGHT moves by parts of a pixel. Lengths "
            "are in pixels, or in nm, um or mm, as disk:0.6um.",
            show_default=False,
        ),
    ],
    printed: AnswerOptions,
    spacing: Annotated[
        str | None,
        typer.Option(
            "--spacing",
            metavar="[DZ,]DY,DX",
            help="Distance of samples along each axis in µm, for lengths that have a unit.",
            show_default=False,
        ),
    ] = None,
    signal: Annotated[
        bool,
        typer.Option(
            "--signal",
            help="Make the kernel of a signal, of one axis: what the blur makes of a line across its last axis.",
        ),
    ] = False,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="N|[D,]H,W",
            help="Taps along each axis, odd: more of them hold more of the tails of airy and moffat. Default: as many "
            "as matter, of tails a part.",
            show_default=False,
        ),
    ] = None,
    output: OutputFile = None,
) -> None:
    """Make a kernel by a formula, of sum 1."""
    from deconv_cli.kernels.sources.band_limited import transform_error
    from deconv_cli.kernels.sources.formula import has_units, make_kernel, read_formula

    if output is not None:
        check_kernel_output(output, Path.cwd(), force=printed.force)
    steps = None if spacing is None else parse_numbers(spacing, "--spacing", (2, 3), float)
    if steps is None and has_units(words):
        raise UsageError("lengths in nm, um or mm need the distances of the samples, as --spacing 0.2,0.1,0.1 in µm.")
    if steps is not None and not has_units(words):
        raise UsageError("--spacing is for lengths in nm, um or mm, of which there are none; leave it out.")
    dimensions = 1 if signal else None
    wanted = None if size is None else parse_numbers(size, "--size", (1, 2, 3), int)
    taps = make_kernel(
        words, spacing=steps, dimensions=dimensions, size=wanted[0] if wanted and len(wanted) == 1 else wanted
    )
    error = transform_error(read_formula(words, steps, dimensions), taps.flip(tuple(range(taps.ndim))))
    record = {
        "schema": 1,
        "command": "kernel make",
        "kernel": words,
        "spacing": None if steps is None else list(steps),
        "shape": list(taps.shape),
        "sum": float(taps.sum()),
        "largest": float(taps.max()),
        "transform_error": error,
        "output": None if output is None else str(output),
    }
    if output is not None:
        write_kernel(output, taps, without_paths(record))
    if not printed.quiet:
        shape = format_size(taps.shape)
        taps_row = f"{shape}, sum {float(taps.sum()):.6g}, largest {float(taps.max()):.4g}"
        error_row = f"off by {error:.2g} at most, up to half of Nyquist's frequency"
        print_table(words, [("taps", taps_row), ("transform", error_row)])
        if error > ACCURATE:
            print_note(
                f"tails that end at the edge of {shape} taps make the transform wrong by {error:.2g}; a larger --size "
                "holds more of them"
            )
    print_kernel(taps, record, output, printed)
