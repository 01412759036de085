"""`deconv kernel fit`: the kernel between pairs of sharp and blurred pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deconv_cli.commands.console import print_table, print_warning
from deconv_cli.commands.kernel_output import (
    LightOption,
    OutputFile,
    check_kernel_output,
    print_kernel,
    without_paths,
    write_kernel,
)
from deconv_cli.commands.option_groups import ForceOption, JsonOption, QuietOption, ShowOption
from deconv_cli.errors import UsageError
from deconv_cli.parts import BOUNDARIES, PENALTIES
from deconv_cli.vocabulary import Size, parse_number_or_auto, shortened

if TYPE_CHECKING:
    from torch import Tensor

    from deconv_cli.vocabulary import Light
    from deconv_cli.workflows.fit_kernel import KernelFit

EXAMPLE = (
    "Example: deconv kernel fit sample_images/camera.png sample_images/camera_blurred.png --size 19,19 -o fitted.npy"
)


def fit(
    pairs: Annotated[
        list[Path],
        typer.Argument(
            metavar="SHARP BLURRED...",
            help="A sharp picture or tensor and the same blurred; further pairs may follow.",
            show_default=False,
        ),
    ],
    size: Annotated[
        str,
        typer.Option(
            "--size", metavar="H,W", help="Taps along each axis; D,H,W for stacks, N for signals.", show_default=False
        ),
    ],
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
    channels: Annotated[
        str,
        typer.Option(
            "--channels",
            metavar="shared|each|mix",
            help="One kernel for all channels, one for each, or a layer that mixes them.",
        ),
    ] = "shared",
    boundary: Annotated[
        str,
        typer.Option(
            "--boundary",
            metavar="NAME",
            help=f"What lay outside the sharp picture: {', '.join(BOUNDARIES)}; unknown uses the samples that do not "
            "depend on it.",
        ),
    ] = "unknown",
    penalty: Annotated[
        str, typer.Option("--penalty", metavar="NAME", help=f"What is kept small: {', '.join(PENALTIES)}.")
    ] = "gradient",
    lam: Annotated[
        str, typer.Option("--lambda", metavar="auto|λ", help="Weight of the penalty; auto takes the likeliest.")
    ] = "auto",
    nonnegative: Annotated[bool, typer.Option("--nonnegative", help="No tap is below zero.")] = False,
    unit_sum: Annotated[bool, typer.Option("--unit-sum", help="The taps of a kernel add up to one.")] = False,
    light: LightOption = None,
    force: ForceOption = False,
    show: ShowOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fit the kernel that blurred sharp pictures, with an error bar for every tap."""
    from deconv_cli.workflows.fit_kernel import fit_kernel

    if len(pairs) % 2:
        raise UsageError(
            f"sharp and blurred pictures come in pairs, but there are {len(pairs)} files; add the missing."
        )
    for path in (output, errors):
        if path is not None:
            check_kernel_output(path, pairs[0], force=force)
    if output is not None and errors is not None and output.resolve() == errors.resolve():
        raise UsageError(f"--errors and --output would both be written to '{output}'; give two names.")
    taps_size, weight = _parse_size(size), parse_number_or_auto(lam, "lambda", " or a positive number")
    read = [_read_pair(*pair, len(taps_size), light) for pair in zip(pairs[::2], pairs[1::2], strict=True)]
    found = fit_kernel(
        [images for images, _ in read],
        taps_size,
        channels=channels,  # type: ignore[arg-type]
        boundary=boundary,
        penalty=penalty,
        lam=None if weight == "auto" else weight,
        nonnegative=nonnegative,
        unit_sum=unit_sum,
    )
    is_cut = found.is_cut(len(taps_size))
    record = {
        "schema": 1,
        "command": "kernel fit",
        "is_cut": is_cut,
        "input": [str(path) for path in pairs],
        "light": read[0][1],
        "boundary": boundary,
        "penalty": penalty,
        "channels": channels,
        "nonnegative": nonnegative,
        "unit_sum": unit_sum,
        **_describe(found),
        "output": None if output is None else str(output),
    }
    for path, values in ((output, found.taps), (errors, found.errors)):
        if path is not None:
            write_kernel(path, values, without_paths(record))
    if not quiet:
        print_table(str(pairs[1]), _rows(found, read[0][1]))
        if is_cut:
            print_warning(
                "the outermost taps are no noise: the kernel goes on beyond them, and the error bars are too small; "
                "choose a larger --size"
            )
    print_kernel(found.taps, record, output, show=show, as_json=as_json)


def _parse_size(text: str) -> Size:
    parts = text.split(",")
    if len(parts) > 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(
            f"--size must be H,W, for stacks D,H,W, for signals N, positive whole numbers, but is '{shortened(text)}'."
        )
    return tuple(map(int, parts))


def _read_pair(sharp: Path, blurred: Path, n_axes: int, light: Light | None) -> tuple[tuple[Tensor, Tensor], str]:
    """Read a pair in that in which the blur acts; gives how that is called too."""
    from deconv_cli.commands.kernel_commands import light_of
    from deconv_cli.io import read_image

    images = [read_image(path).spanned_by(n_axes) for path in (sharp, blurred)]
    if all(image.is_picture for image in images):
        chosen = [light_of(image, light) for image in images]
        values = [each.to_light(image.values.double()) for each, image in zip(chosen, images, strict=True)]
        reason = chosen[1].reason
    else:
        values, reason = [image.values.double() for image in images], "in the samples as they are stored"
    return (values[0], values[1]), reason


def _describe(found: KernelFit) -> dict[str, Any]:
    return {
        "shape": list(found.taps.shape),
        "sum": float(found.taps.sum()),
        "lambda": list(found.lam),
        "noise_sigma": list(found.sigma),
        "residual": found.residual,
        "held_out_residual": found.held_out if math.isfinite(found.held_out) else None,
        "samples": found.n_data,
        "effective_taps": found.n_effective,
        "error": {
            "median": float(found.errors.median()),
            "largest": float(found.errors.max()),
            "relative": float(found.errors.norm() / found.taps.norm()),
        },
    }


def _rows(found: KernelFit, light: str) -> list[tuple[str, str]]:
    shape = "×".join(map(str, found.taps.shape))
    held_out = f", {100 * found.held_out:.3g} % where they were held out" if math.isfinite(found.held_out) else ""
    bars = f"± {float(found.errors.median()):.2g} in the median, {float(found.errors.max()):.2g} at most"
    return [
        ("taps", f"{shape}, sum {float(found.taps.sum()):.6g}, largest {float(found.taps.max()):.4g}"),
        ("error bars", bars),
        ("determined", f"{found.n_effective:.0f} of {found.taps.numel()} taps, by {found.n_data} samples"),
        ("noise", f"σ {', '.join(f'{value:.3g}' for value in found.sigma)}"),
        ("residual", f"{100 * found.residual:.3g} % of the data{held_out}"),
        ("λ", f"{', '.join(f'{value:.2g}' for value in found.lam)}: the likeliest"),
        ("light", light),
    ]
