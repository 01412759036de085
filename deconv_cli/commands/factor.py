"""`deconv factor`: do once what undoing a kernel costs, and keep it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deconv_cli.commands import options
from deconv_cli.commands.console import print_document
from deconv_cli.commands.context import KernelOptions, OptionValues, command_line, retyped_kernel
from deconv_cli.commands.summary import print_factor_summary
from deconv_cli.parts import BOUNDARIES, PENALTIES, method_names
from deconv_cli.vocabulary import DeviceChoice, format_padding, parse_memory, parse_padding, parse_size

if TYPE_CHECKING:
    from deconv_cli.models.kernel_files import KernelFile
    from deconv_cli.solvers.pseudo_inverse import PseudoInverse

EXAMPLE = (
    "Example: deconv factor --kernel sample_images/layer.safetensors --layer conv --size 32,32 -o factor.safetensors"
)

BUILT_AGAIN = "this method has nothing that is costly to keep: deconv invert builds it again from the taps"


def factor(
    kernel: options.KernelOption,
    size: Annotated[
        str,
        typer.Option(
            "--size",
            metavar="H,W",
            help="Height and width of the images that are wanted back. The outputs that are to be inverted are of "
            "another size where padding is not same.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="A .safetensors file.", show_default=False)
    ],
    boundary: Annotated[
        str,
        typer.Option(
            "--boundary",
            **options.one_of("boundary", BOUNDARIES),
            help="What lay outside; unknown is best for photographs.",
        ),
    ] = "zero",
    padding: Annotated[
        str, typer.Option("--padding", metavar="same|valid|full|N|NH,NW", help="How far the kernel reached outside.")
    ] = "same",
    lam: Annotated[
        float | None,
        typer.Option(
            "--lambda",
            metavar="λ",
            help="Weight of the penalty, in units of σ²max; 0 for the pseudo-inverse. Default: 1e-6, for tensors; "
            "photographs want about 1e-3.",
            show_default=False,
        ),
    ] = None,
    penalty: Annotated[
        str,
        typer.Option(
            "--penalty",
            **options.one_of("penalty", PENALTIES),
            help="What is kept small; gradient is best for photographs.",
        ),
    ] = "identity",
    rcond: Annotated[
        float | None,
        typer.Option(
            "--rcond",
            help="Drop singular values up to this fraction of the largest (boundary circular; λ is then 0).",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", **options.one_of("method", method_names()), help="How to solve.")
    ] = "auto",
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            help="Certificate at which an iteration stops. Default: 1e-6 in float32, 1e-10 in float64.",
            show_default=False,
        ),
    ] = None,
    max_iterations: Annotated[int, typer.Option("--max-iterations", help="Iterations at most.", min=1)] = 2000,
    max_memory: options.MaxMemoryOption = None,
    layer: options.LayerOption = None,
    convention: options.ConventionOption = None,
    normalize: options.NormalizeOption = None,
    dtype: options.KernelDTypeOption = None,
    device: options.DeviceOption = DeviceChoice.AUTO,
    force: options.ForceOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Build the inverse of a kernel for images of one size, and keep it for deconv invert --factor."""
    image_size, padding_value = parse_size(size), parse_padding(padding)
    n_bytes = None if max_memory is None else parse_memory(max_memory)

    from deconv_cli.io import fingerprint
    from deconv_cli.io.saved_state import check_state_path
    from deconv_cli.models.kernel_files import read_kernel
    from deconv_cli.report.memory import peak_memory_bytes
    from deconv_cli.report.record import SCHEMA, describe_environment, describe_kernel, describe_well_posedness
    from deconv_cli.saved_inverses import KernelOrigin, SavedInverse, write_inverse
    from deconv_cli.workflows.arithmetic import pick_device, pick_dtype
    from deconv_cli.workflows.invert import DEFAULT_LAMBDA, assess_well_posedness, pseudo_inverse

    check_state_path(output, kernel, force=force)
    started = time.perf_counter()
    kernel_options = KernelOptions(kernel, layer, convention, normalize)
    read = read_kernel(kernel, layer=layer, convention=convention, normalize=normalize)
    where = pick_device(device)
    precision = pick_dtype(dtype, read.kernel, where)
    if lam is None:
        lam = DEFAULT_LAMBDA if rcond is None else 0.0
    building = time.perf_counter()
    inverse = pseudo_inverse(
        read.kernel.to(where, precision),
        input_size=image_size,
        padding=padding_value,
        boundary=boundary,
        lam=lam,
        penalty=penalty,
        rcond=rcond,
        method=method,
        tolerance=tolerance,
        max_iterations=max_iterations,
        max_memory=n_bytes,
    )
    factored = time.perf_counter() - building
    well_posedness = assess_well_posedness(inverse)
    origin = KernelOrigin(str(kernel), read.layer, read.convention, read.sha256, read.notes)
    write_inverse(output, SavedInverse(inverse, read.bias, origin))
    factors = inverse.state.kept.factors.tensors.values()
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "command": "factor",
        "kernel": describe_kernel(
            inverse.kernel,
            path=str(kernel),
            convention=read.convention,
            sha256=read.sha256,
            layer=read.layer,
            has_bias=read.bias is not None,
        ),
        "size": list(image_size),
        "output_size": list(inverse.geometry.output_size),
        **_describe_problem(inverse),
        "well_posedness": describe_well_posedness(well_posedness),
        "factors": {
            "bytes": sum(factor.nbytes for factor in factors),
            "shapes": {name: list(factor.shape) for name, factor in inverse.state.kept.factors.tensors.items()},
            "time_s": factored,
        },
        "output": {"path": str(output), "bytes": output.stat().st_size, "sha256": fingerprint(output)},
        "notes": [*read.notes, *([] if factors else [BUILT_AGAIN])],
        "time_s": time.perf_counter() - started,
        **describe_environment(where, precision, peak_memory_bytes()),
        "rerun": command_line("factor", None, _retyped(kernel_options, read, inverse, output, n_bytes)),
    }
    if not quiet:
        print_factor_summary(record)
    if as_json:
        print_document(record)
    else:
        typer.echo(str(output))


def _describe_problem(inverse: PseudoInverse) -> dict[str, Any]:
    problem, settings = inverse.problem, inverse.settings
    return {
        "boundary": problem.operator.boundary,
        "padding": format_padding(settings.padding),
        "method": inverse.choice.method,
        "method_reason": inverse.choice.reason,
        "lambda": problem.lam,
        "penalty": problem.penalty,
        "rcond": inverse.rcond,
        "tolerance": inverse.tolerance,
        "max_iterations": settings.max_iterations,
    }


def _retyped(
    kernel_options: KernelOptions, read: KernelFile, inverse: PseudoInverse, output: Path, max_memory: int | None
) -> OptionValues:
    """Give the options, resolved, that make the same factor again."""
    problem, settings = inverse.problem, inverse.settings
    return {
        **retyped_kernel(kernel_options, read),
        "--size": ",".join(map(str, inverse.geometry.image_size)),
        "--boundary": problem.operator.boundary,
        "--padding": format_padding(settings.padding),
        "--lambda": repr(problem.lam),
        "--penalty": problem.penalty,
        "--rcond": settings.rcond,
        "--method": inverse.choice.method,
        "--tolerance": inverse.tolerance,
        "--max-iterations": settings.max_iterations,
        "--max-memory": max_memory,
        "--dtype": str(inverse.kernel.taps.dtype).removeprefix("torch."),
        "--device": inverse.kernel.taps.device.type,
        "--output": output,
        "--force": True,
    }
