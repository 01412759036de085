"""`deconv kernel microscope`: the point-spread function that the optics of a microscope give."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deconv_cli.commands.console import print_note, print_table
from deconv_cli.commands.kernel_output import (
    AnswerOptions,
    check_psf_output,
    parse_numbers,
    parse_size,
    print_kernel,
    without_paths,
    write_psf,
)
from deconv_cli.commands.microscope_kernel import WORDS, describe_optics, read_words
from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import format_size

if TYPE_CHECKING:
    from deconv_cli.kernels.optics.microscope import Microscope

EXAMPLE = "Example: deconv kernel microscope na=1.4,emission=520 --spacing 0.2,0.1,0.1 -o psf.tif"


def microscope(
    printed: AnswerOptions,
    words: Annotated[
        str,
        typer.Argument(
            metavar="[WORDS]",
            help=f"What is known: {', '.join(f'{word}=V' for word in WORDS)}, separated by commas; wavelengths in nm, "
            "lengths in µm, the pinhole in Airy units, immersion and sample by refractive index; mode widefield, "
            "confocal, two-photon or light-sheet.",
        ),
    ] = "",
    image: Annotated[
        Path | None,
        typer.Option(
            "--image",
            metavar="FILE",
            help="Take what is not given from the metadata of this file (OME, ImageJ).",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the point-spread function.", show_default=False),
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(
            "--spacing", metavar="[DZ,]DY,DX", help="Distance of samples along each axis, in µm.", show_default=False
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="D|[D,]H,W",
            help="Samples along each axis, odd, or planes alone. Default: 2D − 1 planes of a wide field for the D "
            "planes of --image, or 63, as wide as the cone of light; of other modes what holds most of the light.",
            show_default=False,
        ),
    ] = None,
    channel: Annotated[
        int, typer.Option("--channel", metavar="N", min=0, help="Which channel of several, from 0.")
    ] = 0,
) -> None:
    """Compute a point-spread function from the optics."""
    from deconv_cli.io import read_image
    from deconv_cli.kernels.optics.microscope import MAX_SIDE, microscope_psf, sampling_notes

    if output is not None:
        check_psf_output(output, image or Path.cwd(), force=printed.force)
    read = None if image is None else read_image(image)
    if read is not None:
        read = read.spanned_by(read.named_dimensions or read.dimensions)
    steps = None if spacing is None else parse_numbers(spacing, "--spacing", (2, 3), float)
    microscopes, assumed = describe_optics(read, read_words(f"microscope:{words}"), steps)
    if channel >= len(microscopes):
        raise UsageError(f"--channel must be from 0 to {len(microscopes) - 1} here, but is {channel}.")
    chosen = microscopes[channel]
    n_axes = len(chosen.spacing)
    wanted = chosen.psf_size(None if read is None else tuple(read.values.shape[2:]))
    if size is not None:
        wanted = parse_size(size, n_axes)
    if len(wanted) < n_axes:
        wanted = (*wanted, *chosen.psf_size((wanted[0] // 2 + 1, MAX_SIDE, MAX_SIDE))[1:])
    psf = microscope_psf(chosen, wanted)
    notes = [*assumed, *sampling_notes([chosen], [psf])]
    record: dict[str, Any] = {
        "schema": 1,
        "command": "kernel microscope",
        "input": None if image is None else str(image),
        "microscope": {**vars(chosen), "spacing": list(chosen.spacing)},
        "shape": list(psf.shape),
        "notes": notes,
        "output": None if output is None else str(output),
    }
    if output is not None:
        write_psf(output, psf, without_paths(record), chosen.spacing)
    if not printed.quiet:
        print_table("microscope", _rows(chosen, tuple(psf.shape)))
        for note in notes:
            print_note(note)
    print_kernel(psf, record, output, printed)


def _rows(chosen: Microscope, shape: tuple[int, ...]) -> list[tuple[str, str]]:
    sample = "as the immersion" if chosen.sample_index is None else f"{chosen.sample_index:g}"
    return [
        ("objective", f"numerical aperture {chosen.numerical_aperture:g}, immersion {chosen.immersion_index:g}"),
        ("sample", f"{sample}, {chosen.depth:g} µm deep"),
        ("light", f"{chosen.mode}, emission {chosen.emission:g} nm"),
        ("samples", f"{format_size(shape)} at {' × '.join(f'{step:g}' for step in chosen.spacing)} µm, sum 1"),
        ("Nyquist", f"{' × '.join(f'{step:.3g}' for step in chosen.finest)} µm"),
    ]
