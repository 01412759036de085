"""`deconv invert`: undo a kernel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from deconv_cli.commands.batch import Batch
from deconv_cli.commands.batch_options import BatchOptions, files_read, lay_out, refuse_clashes
from deconv_cli.commands.block_restoration import BlockRestoration
from deconv_cli.commands.chain_restoration import LayersOption, TimeLimitOption, read_chain
from deconv_cli.commands.console import print_note
from deconv_cli.commands.context import ExtraOutputs, pick
from deconv_cli.commands.invert_work import InvertWork, is_estimate
from deconv_cli.commands.open_large import LargeOptions
from deconv_cli.commands.option_groups import (
    KERNEL_OR_ESTIMATE_OPTION,
    DeviceOption,
    FileOptions,
    InputsArgument,
    KernelOptions,
    LayerKernelOptions,
    OutputOption,
    PrintOptions,
    WorkOptions,
)
from deconv_cli.commands.settings_options import ERROR, SETTINGS_OPTIONS, SettingValues
from deconv_cli.commands.user_code import ModelOptions
from deconv_cli.errors import UsageError
from deconv_cli.settings import ReconstructionSettings, option_name
from deconv_cli.vocabulary import DeviceChoice

EXAMPLE = "Example: deconv invert sample_images/camera_blurred.png --kernel sample_images/motion.npy -o restored.tif"

LEFT_OPEN = ("light", "noise_sigma", "noise", "quantization", "max_memory", "predict", "seed")
"""Settings that a factor does not fix."""


def invert(
    invocation: typer.Context,
    inputs: InputsArgument,
    settings: Annotated[SettingValues, tuple(SETTINGS_OPTIONS)],
    kernel_options: LayerKernelOptions,
    files: FileOptions,
    printed: PrintOptions,
    model_options: ModelOptions,
    many: BatchOptions,
    large: LargeOptions,
    workers: WorkOptions,
    kernel: Annotated[list[Path] | None, KERNEL_OR_ESTIMATE_OPTION] = None,
    factor: Annotated[
        Path | None,
        typer.Option(
            "--factor",
            metavar="FILE",
            help="A file of deconv factor, instead of --kernel and of the settings that the file holds.",
            show_default=False,
        ),
    ] = None,
    output: OutputOption = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE.html",
            help="Write a page that shows what was done, with which λ and why, and where to trust the result.",
            show_default=False,
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(
            "--truth",
            metavar="FILE",
            help="The true image, to compare the estimate and its predicted error with.",
            show_default=False,
            rich_help_panel=ERROR,
        ),
    ] = None,
    error_map: Annotated[
        Path | None,
        typer.Option(
            "--error-map",
            metavar="FILE",
            help="Write the predicted error of every pixel.",
            show_default=False,
            rich_help_panel=ERROR,
        ),
    ] = None,
    trust_mask: Annotated[
        Path | None,
        typer.Option(
            "--trust-mask",
            metavar="FILE",
            help="Write where the border adds little and the error is below the contrast: 255 there, 0 elsewhere.",
            show_default=False,
            rich_help_panel=ERROR,
        ),
    ] = None,
    layers: LayersOption = None,
    time_limit: TimeLimitOption = None,
    device: DeviceOption = DeviceChoice.AUTO,
) -> None:
    """Restore images from what a kernel made of them, and report how far to trust the result."""
    if factor is not None:
        _refuse_fixed(settings, kernel_options, kernel)
    elif not kernel:
        raise UsageError(
            "deconv invert needs the kernel that blurred the input: --kernel FILE with a picture of what became of a "
            "point of light, such as a star or a bead, or with the layer's weights; or --kernel estimate, which finds "
            "it in a picture; or a formula that comes near, such as --kernel gaussian:1.5, disk:3 or motion:9@30; or "
            "--factor FILE, which deconv factor made of a kernel."
        )
    extra = ExtraOutputs(report, truth, error_map, trust_mask)
    idle = {"--factor": factor, **kernel_options.as_options()}
    chain = read_chain(layers, model_options, kernel, extra, time_limit, idle)
    wanted = settings | ({"predict": True} if extra.need_prediction and chain is None else {})
    # Refused here, before anything is read; the defaults of a picture or a tensor are known with each input.
    ReconstructionSettings.of(**wanted)
    is_single_kernel = chain is None and factor is None and not is_estimate(kernel or [], kernel_options)
    jobs = lay_out(inputs, output, ending="_restored")
    is_one = len(jobs) == 1 and many.manifest is None
    large.check(is_possible=is_single_kernel, is_one=is_one)
    continues = is_one and (many.resume or large.block_range is not None)  # pages of that run may exist
    extra.check(jobs, force=files.force or continues)
    refuse_clashes(jobs, [*files_read(invocation), *(kernel or []), truth], [*extra.paths, many.manifest])
    if is_single_kernel and is_one:
        in_blocks = BlockRestoration(files, pick(device), wanted, large, resumes=many.resume, workers=workers)
        is_wanted = large.is_cut_anyway or (many.resume and _has_earlier(jobs[0].target))
        found = in_blocks.open(jobs[0].source, kernel or [], kernel_options, is_wanted=is_wanted)
        if found is not None:
            in_blocks.run(jobs[0], found, extra, printed)
            return
        if many.resume:
            many = replace(many, resume=False)
            extra.check(jobs, force=files.force)
            if not printed.quiet and (files.force or not jobs[0].target.exists()):
                print_note(f"there is no run for '{jobs[0].target}' to continue, and it is restored as a whole")
    if len(jobs) == 1 and workers.are_given and not printed.quiet:
        print_note("one file that is restored as a whole is the work of this process alone; workers are for blocks")
    many.check(force=files.force)
    work = InvertWork(
        kernel or [],
        kernel_options,
        factor,
        wanted,
        files,
        extra,
        printed,
        chain,
        device,
        jobs[0].source,
        large,
        can_be_cut=is_single_kernel,
        resumes=many.resume,
    )
    Batch("invert", files, printed, many, workers, invocation).run(jobs, work)


def _has_earlier(target: Path) -> bool:
    from deconv_cli.blocks.checkpoint import has_earlier

    return has_earlier(target)


def _refuse_fixed(settings: SettingValues, kernel_options: KernelOptions, kernel: list[Path] | None) -> None:
    """Refuse options that contradict a factor, or repeat it.

    Raises:
        UsageError: names those that were typed.
    """
    if settings.keys() & {"nonnegative", "prior", "weight", "gain"}:
        raise UsageError(
            "a factor is a linear inverse, so that --factor does not go with --nonnegative, --prior, --weight or "
            "--gain; give its kernel with --kernel instead."
        )
    given = ["--kernel"] if kernel else []
    given += [name for name, value in kernel_options.as_options().items() if value is not None]
    given += [option_name(name) for name in settings if name not in LEFT_OPEN]
    if given:
        raise UsageError(
            f"--factor fixes what {', '.join(given)} would say; leave that out, or make another factor with it."
        )
