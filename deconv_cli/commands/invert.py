"""`deconv invert`: undo a kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deconv_cli.commands.batch import Job, Outcome, lay_out, refuse_to_replace, run
from deconv_cli.commands.blind_restoration import BlindRestoration, is_estimate
from deconv_cli.commands.chain_restoration import ChainRestoration, LayersOption, read_chain
from deconv_cli.commands.context import Context, pick
from deconv_cli.commands.loaded_kernel import load_factor, load_kernels
from deconv_cli.commands.microscope_kernel import is_microscope, load_microscope
from deconv_cli.commands.model_options import ModelOptions
from deconv_cli.commands.option_groups import (
    KERNEL_OR_ESTIMATE_OPTION,
    DeviceOption,
    FileOptions,
    InputsArgument,
    KernelOptions,
    OutputOption,
    PrintOptions,
)
from deconv_cli.commands.outputs import ExtraOutputs
from deconv_cli.commands.restoration import Restoration
from deconv_cli.commands.settings_options import ERROR, SETTINGS_OPTIONS, SettingValues
from deconv_cli.commands.tap_restoration import StartOption, TapOption, TapRestoration, refuse_beside_tap
from deconv_cli.errors import UsageError
from deconv_cli.settings import ReconstructionSettings, option_name
from deconv_cli.vocabulary import DeviceChoice

EXAMPLE = "Example: deconv invert sample_images/camera_blurred.png --kernel sample_images/motion.npy -o restored.tif"

LEFT_OPEN = ("light", "noise_sigma", "noise", "quantization", "max_memory", "predict", "seed")
"""Settings that a factor leaves open; it fixes the others."""


def invert(
    inputs: InputsArgument,
    settings: Annotated[SettingValues, tuple(SETTINGS_OPTIONS)],
    kernel_options: KernelOptions,
    files: FileOptions,
    printed: PrintOptions,
    model_options: ModelOptions,
    kernel: Annotated[list[Path] | None, KERNEL_OR_ESTIMATE_OPTION] = None,
    factor: Annotated[
        Path | None,
        typer.Option(
            "--factor",
            metavar="FILE",
            help="What deconv factor wrote, in place of --kernel and of all that was settled then.",
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
            help="Write where the border adds little to the error: 255 there, 0 elsewhere.",
            show_default=False,
            rich_help_panel=ERROR,
        ),
    ] = None,
    layers: LayersOption = None,
    tap: TapOption = None,
    start: StartOption = None,
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
    refuse_beside_tap(tap, start, extra, factor)
    idle = {"--tap": tap, "--factor": factor, **kernel_options.as_options()}
    chain = read_chain(layers, model_options, kernel, extra, idle)
    wanted = settings | ({"predict": True} if extra.need_prediction else {})
    # Refused here, before anything is read; the defaults of a picture or a tensor are known with each input.
    ReconstructionSettings.of(**wanted)
    jobs = lay_out(inputs, output, ending="_restored")
    extra.check(jobs, force=files.force)
    refuse_to_replace([factor] if factor is not None else kernel or [], [job.target for job in jobs] + extra.paths)
    where = pick(device)
    if chain is not None:
        run("invert", jobs, ChainRestoration(chain, files, where, settings, printed).restore, printed)
        return
    if tap is None and kernel is not None and is_estimate(kernel, kernel_options):
        run("invert", jobs, BlindRestoration(files, where, wanted, extra, printed).restore, printed)
        return
    if tap is None and kernel is not None and is_microscope(kernel, kernel_options):

        def restore(job: Job) -> Outcome:
            image = files.read(job.source)
            loaded = load_microscope(str(kernel[0]), image, settings.get("dimensions"))
            own = wanted | {"dimensions": loaded.kernel.n_axes}
            return Restoration(Context("invert", loaded, files, where), own, extra, printed).restore(job, image)

        run("invert", jobs, restore, printed)
        return
    if factor is not None:
        loaded = load_factor(factor, where, settings.get("max_memory"))
    else:
        loaded = load_kernels(
            kernel or [], kernel_options, settings.get("dimensions"), lambda: files.read(jobs[0].source)
        )
    context = Context("invert", loaded, files, where)
    if tap is not None:
        run("invert", jobs, TapRestoration(context, tap, wanted, start, printed).restore, printed)
    else:
        run("invert", jobs, Restoration(context, wanted, extra, printed).restore, printed)


def _refuse_fixed(settings: SettingValues, kernel_options: KernelOptions, kernel: list[Path] | None) -> None:
    """Refuse options that contradict a factor, or repeat what it says.

    Raises:
        UsageError: some were typed; names them.
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
