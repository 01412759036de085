"""`deconv forward`: apply a kernel."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from deconv_cli.commands import options
from deconv_cli.commands.batch import Job, Outcome, lay_out, run
from deconv_cli.commands.context import Context, FileOptions, KernelOptions
from deconv_cli.vocabulary import DeviceChoice, PaddingLike, format_padding, parse_padding

EXAMPLE = "Example: deconv forward sample_images/camera.png --kernel sample_images/motion.npy -o blurred.tif"


class ForwardBoundary(StrEnum):
    """The borders under which a convolution can be computed."""

    ZERO = "zero"
    CIRCULAR = "circular"
    REFLECT = "reflect"
    SYMMETRIC = "symmetric"
    REPLICATE = "replicate"


def forward(
    inputs: options.InputsArgument,
    kernel: options.KernelOption,
    output: options.OutputOption = None,
    padding: Annotated[
        str, typer.Option("--padding", metavar="same|valid|full|N|NH,NW", help="How far the kernel reaches outside.")
    ] = "same",
    boundary: Annotated[ForwardBoundary, typer.Option("--boundary", help="What lies outside.")] = ForwardBoundary.ZERO,
    noise: Annotated[
        str | None,
        typer.Option(
            "--noise",
            metavar="gaussian:SIGMA|poisson:PEAK",
            help="Add noise of standard deviation SIGMA, or of PEAK counts at the brightest sample.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the noise.", min=0)] = 0,
    layer: options.LayerOption = None,
    convention: options.ConventionOption = None,
    normalize: options.NormalizeOption = None,
    axes: options.AxesOption = None,
    tensor: options.TensorOption = None,
    series: options.SeriesOption = None,
    output_dtype: options.OutputDTypeOption = None,
    dtype: options.DTypeOption = None,
    device: options.DeviceOption = DeviceChoice.AUTO,
    show: options.ShowOption = False,
    force: options.ForceOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Apply a kernel to images, exactly as torch.nn.functional.conv2d does (a cross-correlation)."""
    padding_value = parse_padding(padding)
    jobs = lay_out(inputs, output, ending="_forward")
    context = Context.open(
        "forward",
        KernelOptions(kernel, layer, convention, normalize),
        FileOptions(axes, tensor, series, output_dtype, force),
        device,
        dtype,
    )

    def process(job: Job) -> Outcome:
        return Outcome(_apply(context, job, padding_value, boundary, noise, seed, show=show))

    run("forward", jobs, process, as_json=as_json, quiet=quiet)


def _apply(
    context: Context,
    job: Job,
    padding: PaddingLike,
    boundary: ForwardBoundary,
    noise: str | None,
    seed: int,
    *,
    show: bool,
) -> dict[str, Any]:
    from deconv_cli.workflows.forward import forward as apply_kernel
    from deconv_cli.workflows.noise import Noise

    noise_model = None if noise is None else Noise.parse(noise)
    loaded = context.read(job)
    n_channels = context.kernel.n_outputs(loaded.values.shape[1])
    plan = context.plan(job, loaded, n_channels=n_channels, same_size=context.keeps_size(padding))
    result = apply_kernel(
        loaded.values,
        context.kernel_file.kernel,
        padding=padding,
        boundary=boundary.value,
        bias=context.kernel_file.bias,
    )
    if noise_model is not None:
        result = noise_model.add(result, seed)
    prepared = plan.prepare(result.cpu())
    typed = {
        "--padding": format_padding(padding),
        "--boundary": boundary.value,
        "--noise": noise,
        "--seed": None if noise is None else seed,
    }
    details = {name.removeprefix("--"): value for name, value in typed.items()}
    record = context.deliver(job, loaded, prepared, details, typed)
    if show:
        from deconv_cli.commands.terminal_picture import show_picture

        show_picture(result, is_color=loaded.source.is_picture)
    return record
