"""`deconv forward`: apply a kernel, exactly as torch does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deconv_cli.commands.batch import Batch
from deconv_cli.commands.batch_layout import lay_out, refuse_clashes
from deconv_cli.commands.batch_options import BatchOptions, files_read
from deconv_cli.commands.forward_work import AddedNoise, ForwardWork, TypedConvolution
from deconv_cli.commands.option_groups import (
    KERNEL_OPTION,
    DeviceOption,
    FileOptions,
    InputsArgument,
    LayerKernelOptions,
    OutputOption,
    PrintOptions,
)
from deconv_cli.commands.settings_options import LAYER_SETTINGS, SettingValues
from deconv_cli.commands.work_options import WorkOptions
from deconv_cli.errors import UsageError
from deconv_cli.parts import BOUNDARIES, TAPS
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.vocabulary import MAX_SEED, DeviceChoice, Light, check_name, parse_padding

TEXTS = {
    "light": "What the blur acts on: linear for light, to which samples are converted by their ICC profile, gamma or "
    "sRGB, and back; stored for the samples as they are. Default: auto, linear for pictures but TIFF without a "
    "profile, and stored for tensors."
}

EXAMPLE = "Example: deconv forward sample_images/camera.png --kernel sample_images/motion.npy -o blurred.tif"


def forward(
    invocation: typer.Context,
    inputs: InputsArgument,
    kernel: Annotated[list[Path], KERNEL_OPTION],
    settings: Annotated[SettingValues, ("dimensions", "light", "dtype", *LAYER_SETTINGS), TEXTS],
    kernel_options: LayerKernelOptions,
    files: FileOptions,
    printed: PrintOptions,
    many: BatchOptions,
    workers: WorkOptions,
    output: OutputOption = None,
    boundary: Annotated[
        str | None,
        typer.Option(
            "--boundary",
            metavar="NAME",
            help=f"What lies outside the image: {', '.join(name for name in BOUNDARIES if name != 'unknown')}. "
            "Default: what the model file says, else zero.",
            autocompletion=lambda: list(BOUNDARIES),
            show_default=False,
        ),
    ] = None,
    padding: Annotated[
        str | None,
        typer.Option(
            "--padding",
            metavar="same|valid|full|N|NH,NW",
            help="How far the kernel reaches outside. Default: what the model file says, else same.",
            show_default=False,
        ),
    ] = None,
    noise: Annotated[
        str | None,
        typer.Option(
            "--noise",
            metavar="gaussian:SIGMA|poisson:PEAK",
            help="Add noise of standard deviation SIGMA, or of PEAK counts at the brightest sample: to light, on the "
            "scale of the samples, where light is linear.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            help="Seed of the noise; each of several files has one of its own, made of this and its path. Default: 0.",
            min=0,
            max=MAX_SEED,
        ),
    ] = None,
    tap: Annotated[
        str | None,
        typer.Option(
            "--tap",
            metavar="NAME|FILE.py:FUNCTION",
            help=f"What a tap computes from a pixel and a weight, instead of their product: {', '.join(TAPS)}, or a "
            "function of two tensors in your own file, whose code is run. Taps act on the samples as they are stored.",
            show_default=False,
            rich_help_panel="The convolution",
        ),
    ] = None,
    device: DeviceOption = DeviceChoice.AUTO,
) -> None:
    """Apply a kernel to images, exactly as torch.nn.functional.conv2d does (a cross-correlation)."""
    light = check_name(("auto", *Light), settings.get("light", "auto"), "light")
    if tap is not None:
        if light == Light.LINEAR:
            raise UsageError("--tap acts on the samples as they are stored, not on light; leave --light out.")
        light = Light.STORED
    given = ReconstructionSettings.of(**{name: value for name, value in settings.items() if name != "light"})
    added = AddedNoise.parse(noise, seed)
    convolution = TypedConvolution(
        boundary=None if boundary is None else BOUNDARIES.check(boundary),
        padding=None if padding is None else parse_padding(padding),
        light=light,
        given=given,
        tap=tap,
    )
    many.check(force=files.force)
    jobs = lay_out(inputs, output, ending="_forward")
    refuse_clashes(jobs, [*files_read(invocation), *kernel], [many.manifest])
    work = ForwardWork(kernel, kernel_options, convolution, added, files, device, jobs[0].source)
    Batch("forward", files, printed, many, workers, invocation).run(jobs, work)
