"""`deconv kernel from-beads`: a point-spread function from a picture or a stack of small beads."""

from __future__ import annotations

import math
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
from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import format_percent, format_size

if TYPE_CHECKING:
    from torch import Tensor

    from deconv_cli.io import ImageFile
    from deconv_cli.kernels.beads.bead_psf import BeadPsf

EXAMPLE = "Example: deconv kernel from-beads beads.tif --bead-diameter 0.1 -o psf.tif"

AXIS_NAMES = "ZYX"


def from_beads(
    beads: Annotated[Path, typer.Argument(metavar="BEADS", help="A picture or a stack of beads.", show_default=False)],
    printed: AnswerOptions,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write the point-spread function: a .tif shows it as a camera does; .safetensors, .pt, .npy and .npz "
            "hold the taps of a cross-correlation, turned by 180°.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="D|[D,]H,W",
            help="Samples along each axis, odd, or planes alone. Default: those that stand out of the noise.",
            show_default=False,
        ),
    ] = None,
    bead_diameter: Annotated[
        float,
        typer.Option(
            "--bead-diameter",
            metavar="V",
            min=0,
            help="Diameter of the beads, in µm, or in samples where no spacing is known; their size is divided out.",
        ),
    ] = 0.0,
    spacing: Annotated[
        str | None,
        typer.Option(
            "--spacing",
            metavar="[DZ,]DY,DX",
            help="Distance of samples along each axis, in µm. Default: the file's.",
            show_default=False,
        ),
    ] = None,
    channel: Annotated[
        int | None, typer.Option("--channel", metavar="N", min=0, help="Which channel, from 0.", show_default=False)
    ] = None,
    axes: Annotated[
        str | None,
        typer.Option("--axes", metavar="LETTERS", help="Read the file's axes as these, for example ZYX or CZYX."),
    ] = None,
) -> None:
    """Measure a point-spread function on a picture of beads: average those that stand alone."""
    from deconv_cli.io import read_image
    from deconv_cli.kernels.beads.bead_psf import psf_from_beads
    from deconv_cli.tone_curve import limits_of

    if output is not None:
        check_psf_output(output, beads, force=printed.force)
    image = read_image(beads, axes=axes)
    image = image if image.values.shape[0] == 1 else image.spanned_by(3)
    samples, known = _one_channel(image, channel)
    given = parse_numbers(spacing, "--spacing", (samples.ndim,), float) if spacing is not None else None
    steps = given or known
    limits = limits_of(samples, image.dtype)
    found = psf_from_beads(
        samples,
        size=None if size is None else parse_size(size, samples.ndim),
        bead_diameter=bead_diameter,
        spacing=steps,
        white=limits and limits[1],
    )
    record = {
        "schema": 1,
        "command": "kernel from-beads",
        "input": str(beads),
        "spacing": None if steps is None else list(steps),
        "bead_diameter": bead_diameter,
        **_describe(found),
        "output": None if output is None else str(output),
    }
    if output is not None:
        write_psf(output, found.psf, without_paths(record), steps)
    if not printed.quiet:
        print_table(str(beads), _rows(found, steps))
        for note in image.notes:
            print_note(note)
    print_kernel(found.psf, record, output, printed)


def _one_channel(image: ImageFile, channel: int | None) -> tuple[Tensor, tuple[float, ...] | None]:
    """Give the samples of one channel, `(H, W)` or `(D, H, W)`, and their spacing in µm where it is known."""
    values = image.values
    if len(values) > 1:
        raise UsageError(f"'{image.path}' holds {len(values)} stacks; give one, or name its axes with --axes.")
    n_channels = values.shape[1]
    if channel is None and n_channels > 1:
        raise UsageError(f"'{image.path}' holds {n_channels} channels; choose one with --channel N.")
    if channel is not None and channel >= n_channels:
        raise UsageError(f"--channel must be from 0 to {n_channels - 1} here, but is {channel}.")
    return values[0, channel or 0], image.spacing


def _describe(found: BeadPsf) -> dict[str, Any]:
    scatter = [value if math.isfinite(value) else None for value in found.scatter]
    return {
        "shape": list(found.psf.shape),
        "fwhm_samples": list(found.widths),
        "fwhm_scatter_samples": scatter,
        "beads": {
            "used": found.n_used,
            "too_close": found.census.n_crowded,
            "saturated": found.census.n_saturated,
            "at_edge": found.census.n_at_edge,
            "unlike_the_others": found.n_unlike,
        },
        "background": found.background,
        "light_share": found.share,
        "outermost_plane": found.outermost,
    }


def _rows(found: BeadPsf, steps: tuple[float, ...] | None) -> list[tuple[str, str]]:
    from deconv_cli.kernels.beads.bead_psf import describe_census

    left_out = list(filter(None, [describe_census(found.census)]))
    left_out += [f"{found.n_unlike} unlike the others"] if found.n_unlike else []
    rows = [("beads", f"{found.n_used} averaged" + (f"; left out: {', '.join(left_out)}" if left_out else ""))]
    names = AXIS_NAMES[-found.psf.ndim :]
    for i, name in enumerate(names):
        step = 1.0 if steps is None else steps[i]
        scatter = f" ± {found.scatter[i] * step:.2g}" if math.isfinite(found.scatter[i]) else ""
        unit = "samples" if steps is None else "µm"
        rows.append((f"FWHM {name}", f"{found.widths[i] * step:.4g}{scatter} {unit}"))
    return [
        *rows,
        ("size", f"{format_size(found.psf.shape)} samples, sum 1"),
        ("light", f"{format_percent(found.share)} of the light of a bead that stands out of the noise"),
        ("background", f"{found.background:.5g}, subtracted"),
    ]
