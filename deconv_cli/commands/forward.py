"""`deconv forward`: apply a kernel, exactly as torch does."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deconv_cli.commands.batch import Job, Outcome, lay_out, run
from deconv_cli.commands.context import Context, describe_output, environment_of, pick
from deconv_cli.commands.loaded_kernel import LoadedKernel, load_kernels
from deconv_cli.commands.microscope_kernel import is_microscope, load_microscope
from deconv_cli.commands.option_groups import (
    KERNEL_OPTION,
    DeviceOption,
    FileOptions,
    InputsArgument,
    KernelOptions,
    OptionValues,
    OutputOption,
    PrintOptions,
)
from deconv_cli.commands.settings_options import LAYER_SETTINGS, SettingValues, layer_options
from deconv_cli.commands.summary import print_forward_summary
from deconv_cli.commands.tap_restoration import TapOption, apply_tap, stored_light
from deconv_cli.errors import UsageError
from deconv_cli.layer_options import PLAIN, LayerOptions
from deconv_cli.parts import BOUNDARIES
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.vocabulary import (
    MAX_SEED,
    ArithmeticDType,
    DeviceChoice,
    Light,
    PaddingLike,
    check_name,
    format_padding,
    parse_padding,
)

if TYPE_CHECKING:
    from torch import Tensor

    from deconv_cli.workflows.noise import Noise

TEXTS = {
    "light": "In what the blur acts: linear, in light, for which sRGB, gamma or the embedded ICC profile is undone "
    "first and done again last; or stored, in the samples as they are. Default: auto, linear for pictures but TIFF "
    "without a profile, and stored for tensors."
}

EXAMPLE = "Example: deconv forward sample_images/camera.png --kernel sample_images/motion.npy -o blurred.tif"


def forward(
    inputs: InputsArgument,
    kernel: Annotated[list[Path], KERNEL_OPTION],
    settings: Annotated[SettingValues, ("dimensions", "light", "dtype", *LAYER_SETTINGS), TEXTS],
    kernel_options: KernelOptions,
    files: FileOptions,
    printed: PrintOptions,
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
        int | None, typer.Option("--seed", metavar="N", help="Seed of the noise. Default: 0.", min=0, max=MAX_SEED)
    ] = None,
    tap: TapOption = None,
    device: DeviceOption = DeviceChoice.AUTO,
) -> None:
    """Apply a kernel to images, exactly as torch.nn.functional.conv2d does (a cross-correlation)."""
    light = check_name(("auto", *Light), settings.get("light", "auto"), "light")
    if tap is not None:
        light = stored_light(light)
    given = ReconstructionSettings.of(**{name: value for name, value in settings.items() if name != "light"})
    padded = None if padding is None else parse_padding(padding)
    named = None if boundary is None else BOUNDARIES.check(boundary)
    added = _AddedNoise.parse(noise, seed)
    jobs = lay_out(inputs, output, ending="_forward")
    dimensions, where = settings.get("dimensions"), pick(device)
    if is_microscope(kernel, kernel_options):

        def load(job: Job) -> LoadedKernel:
            return load_microscope(str(kernel[0]), files.read(job.source), dimensions)
    else:
        loaded = load_kernels(kernel, kernel_options, dimensions, lambda: files.read(jobs[0].source))

        def load(job: Job) -> LoadedKernel:
            del job
            return loaded

    def process(job: Job) -> Outcome:
        own = load(job)
        convolution = _Convolution.of(own, named, padded, light, given, tap)
        return _apply(Context("forward", own, files, where), job, convolution, added, show=printed.show)

    run("forward", jobs, process, printed)


@dataclass(frozen=True)
class _Convolution:
    """What is applied: boundary, padding, layer, in what it acts, the arithmetic's precision, a tap for products."""

    boundary: str
    padding: PaddingLike
    light: str
    given: ReconstructionSettings
    tap: str | None
    layer: LayerOptions = PLAIN

    @classmethod
    def of(
        cls,
        kernel: LoadedKernel,
        boundary: str | None,
        padding: PaddingLike | None,
        light: str,
        given: ReconstructionSettings,
        tap: str | None,
    ) -> _Convolution:
        """Take what was typed, else what the model file says, else the defaults.

        Raises:
            UsageError: the options of a layer with a custom tap.
        """
        known = kernel.recorded
        layer = given.layer_over(PLAIN if known is None else known.layer)
        if tap is not None and not layer.is_plain:
            raise UsageError(f"--tap slides by single pixels, but the layer is one with {layer.describe()}.")
        if boundary is None:
            boundary = "zero" if known is None else known.boundary
        if padding is None:
            padding = "same" if known is None else known.padding
        return cls(boundary, padding, light, given, tap, layer)

    @property
    def dtype(self) -> ArithmeticDType | None:
        """The precision of the arithmetic, where it was typed."""
        return self.given.dtype

    def apply(self, samples: Tensor, kernel: LoadedKernel) -> Tensor:
        """Apply a kernel to samples `(B, C, *size)`, or custom taps with its weights."""
        from deconv_cli.workflows.apply_kernel import forward as apply_kernel

        if self.tap is not None:
            return apply_tap(self.tap, samples, kernel, self.padding, self.boundary, self.dtype)
        return apply_kernel(
            samples,
            kernel.taps,
            dimensions=kernel.kernel.n_axes,
            padding=self.padding,
            **asdict(self.layer),
            boundary=self.boundary,
            bias=kernel.bias,
            dtype=self.dtype,
        )


@dataclass(frozen=True)
class _AddedNoise:
    """What is added: the noise as it was given, `None` for none, and its seed."""

    text: str | None
    model: Noise | None
    seed: int

    @classmethod
    def parse(cls, text: str | None, seed: int | None) -> _AddedNoise:
        from deconv_cli.workflows.noise import Noise

        if text is None and seed is not None:
            raise UsageError("--seed draws noise, which nothing asks for; leave it out, or add --noise.")
        return cls(text, None if text is None else Noise.parse(text), seed or 0)


def _apply(context: Context, job: Job, convolution: _Convolution, added: _AddedNoise, *, show: bool) -> Outcome:
    """Read, convolve and write one file."""
    from deconv_cli.report.run import ForwardRun
    from deconv_cli.report.run_record import describe_run
    from deconv_cli.workflows.light import choose_light

    loaded, kernel = context.read(job), context.loaded
    chosen = choose_light(convolution.light, loaded.image.tone_curve)
    padding, boundary = convolution.padding, convolution.boundary
    layer = convolution.layer
    n_channels = kernel.kernel.with_layer(layer).n_outputs(loaded.values.shape[1])
    plan = context.plan(job, loaded, n_channels=n_channels, same_size=context.keeps_size(padding, layer))
    samples = chosen.to_light(loaded.values, convolution.dtype)
    result = convolution.apply(samples, kernel)
    if added.model is not None:
        result = added.model.add(result, added.seed)
    result = chosen.to_stored(result)
    prepared = plan.prepare(result.cpu())
    options: OptionValues = {
        "--padding": format_padding(padding),
        "--boundary": boundary,
        **layer_options(layer, [name for name in LAYER_SETTINGS if getattr(convolution.given, name) is not None]),
        "--light": chosen.light,
        "--noise": added.text,
        "--seed": None if added.text is None else added.seed,
        "--tap": convolution.tap,
        "--dtype": str(result.dtype).removeprefix("torch."),
    }
    done = ForwardRun(
        command=context.command,
        source=loaded.describe(job.source),
        kernel=kernel.source,
        output=describe_output(job.target, prepared),
        notes=context.notes(loaded, prepared),
        environment=environment_of(context.device, result.dtype, loaded.started),
        rerun=context.rerun(job, prepared, options),
        padding=padding,
        boundary=boundary,
        input_size=tuple(loaded.values.shape[-kernel.kernel.n_axes :]),
        layer=layer,
        light=chosen,
        noise=added.text,
        seed=None if added.text is None else added.seed,
        tap=convolution.tap,
    )
    record = describe_run(done)
    prepared.write(record)
    if show:
        from deconv_cli.commands.terminal_picture import show_picture

        show_picture(result, n_axes=kernel.kernel.n_axes, is_color=loaded.image.is_picture)
    return Outcome(record, partial(print_forward_summary, done))
