"""`deconv forward`: apply a kernel, exactly as torch does."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deconv_cli.commands import option_groups as options
from deconv_cli.commands.batch import Batch
from deconv_cli.commands.console import print_note
from deconv_cli.commands.input_files import lay_out, refuse_clashes
from deconv_cli.commands.kernel_request import KernelRequest
from deconv_cli.commands.loaded_kernel import MICROSCOPE, LoadedKernel
from deconv_cli.commands.option_groups import files_read, optional
from deconv_cli.commands.progress import WorkProgress
from deconv_cli.commands.settings_options import LAYER_SETTINGS, SettingValues, layer_options
from deconv_cli.commands.summary import print_forward_summary
from deconv_cli.commands.user_code import describe_warnings, name_or_code, running_user_code
from deconv_cli.commands.work import Job, JobResult, LargeInput, Process, Source, Work
from deconv_cli.errors import UsageError
from deconv_cli.layer_options import LayerOptions
from deconv_cli.parts import BOUNDARIES, TAPS
from deconv_cli.schedulers.scheduler import announce_writing
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.vocabulary import MAX_SEED, DeviceChoice, Light, PaddingLike, format_padding

if TYPE_CHECKING:
    from torch import Tensor

    from deconv_cli.workflows.apply_kernel import Noise

EXAMPLE = "Example: deconv forward sample_images/camera.png --kernel sample_images/motion.npy -o blurred.tif"

TEXTS = {
    "boundary": f"What lies outside the image: {', '.join(name for name in BOUNDARIES if name != 'unknown')}. Default: "
    "what the model file says, else zero.",
    "padding": "Reach of the kernel outside the image. Default: what the model file says, else same.",
    "light": "What the blur acts on: linear converts samples to light and back by their ICC profile, gamma or sRGB; "
    "stored uses the samples as they are. Default: auto, linear for pictures, except TIFF without a profile, and "
    "stored for tensors.",
}


def forward(
    invocation: typer.Context,
    inputs: options.InputsArgument,
    kernel: Annotated[list[Path], options.KERNEL_OPTION],
    settings: Annotated[SettingValues, ("boundary", "padding", "light", "dimensions", "dtype", *LAYER_SETTINGS), TEXTS],
    kernel_options: options.LayerKernelOptions,
    files: options.FileOptions,
    printed: options.PrintOptions,
    many: options.BatchOptions,
    workers: options.WorkOptions,
    output: options.OutputOption = None,
    noise: str | None = optional(
        "--noise gaussian:SIGMA|poisson:PEAK",
        "Add Gaussian noise of standard deviation SIGMA, or Poisson noise with PEAK counts at the brightest "
        "sample. If --light is linear, it is added to light on the scale of the samples.",
    ),
    seed: int | None = optional(
        "--seed N",
        "Seed of the noise. With several files, each file's seed follows from this number and its path. Default: 0.",
        min=0,
        max=MAX_SEED,
    ),
    tap: str | None = optional(
        "--tap NAME|FILE.py:FUNCTION",
        f"The operation on a pixel and a weight, instead of their product: {', '.join(TAPS)}, or a function of "
        "two tensors in your own file, whose code is run. It acts on the samples as stored.",
        "The convolution",
    ),
    device: options.DeviceOption = DeviceChoice.AUTO,
) -> None:
    """Apply a kernel to images, exactly as torch.nn.functional.conv2d does (a cross-correlation)."""
    given = ReconstructionSettings.of(**settings)
    if tap is not None and given.light == Light.LINEAR:
        raise UsageError("--tap acts on the samples as they are stored, not on light; leave --light out.")
    if noise is None and seed is not None:
        raise UsageError("--seed is for --noise, which is missing; leave it out, or add --noise.")
    added = None
    if noise is not None:
        from deconv_cli.workflows.apply_kernel import Noise

        added = Noise.parse(noise)
    many.check(force=files.force)
    jobs, left_out = lay_out(inputs, output, ending="_forward", is_quiet=printed.quiet, force=files.force)
    refuse_clashes(jobs, [*files_read(invocation), *kernel], [many.manifest])
    work = ForwardWork(
        kernel=KernelRequest(kernel, kernel_options, given.dimensions),
        given=given if tap is None else replace(given, light=Light.STORED),
        tap=tap,
        noise=None if added is None or noise is None else (noise, added, seed or 0),
        files=files,
        device=device,
    )
    Batch("forward", files, printed, many, workers).run(jobs, work, left_out)


@dataclass(frozen=True, kw_only=True)
class ForwardWork(Work):
    """The options of `deconv forward`; the noise is as typed and as parsed, with its seed."""

    given: ReconstructionSettings
    tap: str | None
    noise: tuple[str, Noise, int] | None

    command = "forward"

    @property
    def is_alone(self) -> bool:
        """Whether the user's code runs, which may print and warn, or each input has its own kernel."""
        return self.tap is not None or self.kernel.word == MICROSCOPE

    def open(self) -> Process:
        """Read the kernel, unless each input describes its own optics."""
        if self.kernel.word != MICROSCOPE:
            self.kernel.load()
        return self._apply

    def _apply(self, job: Job, source: Source, progress: WorkProgress) -> JobResult:
        """Convolve one input, write the result, and describe it."""
        from deconv_cli.report.run import ForwardRun, describe_run
        from deconv_cli.workflows.arithmetic import choose_light
        from deconv_cli.workflows.resolve_settings import RecordedConvolution

        progress.begin("convolving")
        assert not isinstance(source, LargeInput)
        kernel = self.kernel.of(source)
        text, noise, seed = self.noise or (None, None, None)
        if noise is not None and self.tap is None:
            taps, notes = noise.kernel_for(kernel.taps, kernel.kernel.n_axes)
            kernel = replace(kernel, taps=taps, notes=(*kernel.notes, *notes))
        known = kernel.recorded or RecordedConvolution("zero", "same")
        layer = self.given.layer_over(known.layer)
        boundary = known.boundary if self.given.boundary == "auto" else self.given.boundary
        padding = known.padding if self.given.padding is None else self.given.padding
        image = self.move(kernel.arrange(source))
        light = choose_light(self.given.light, image.tone_curve)
        n_channels = kernel.kernel.with_layer(layer).n_outputs(image.values.shape[1])
        plan = self.plan(job, image, n_channels)
        result = self._convolve(light.to_light(image.values, self.given.dtype), kernel, layer, boundary, padding)
        if noise is not None and seed is not None:
            if job.n_jobs > 1:  # each file has a seed of its own, by its path
                text_of_seed = f"{seed} {job.source.as_posix()}".encode(errors="surrogateescape")
                seed = int.from_bytes(hashlib.sha256(text_of_seed).digest()[:8]) % (MAX_SEED + 1)
            result = noise.add(result, seed)
        result = light.to_stored(result)
        prepared = plan.prepare(result.cpu())
        typed = [name for name in LAYER_SETTINGS if getattr(self.given, name) is not None]
        again: options.OptionValues = {
            "--padding": format_padding(padding),
            "--boundary": boundary,
            **layer_options(layer, typed),
            "--light": light.light,
            "--noise": text,
            "--seed": seed,
            "--tap": self.tap,
            "--dtype": str(result.dtype).removeprefix("torch."),
        }
        run = ForwardRun(
            command="forward",
            kernel=kernel.source,
            notes=kernel.notes_on(image, prepared),
            rerun=self.rerun(job.source, kernel.options | again, job.target, prepared.dtype),
            padding=padding,
            boundary=boundary,
            input_size=tuple(image.values.shape[-kernel.kernel.n_axes :]),
            layer=layer,
            light=light,
            noise=text,
            seed=seed,
            tap=self.tap,
            **self.describe(job, image, prepared, result.dtype, progress.started),
        )
        record = describe_run(run)
        announce_writing()
        prepared.write(record)
        return JobResult(record, partial(print_forward_summary, run))

    def _convolve(
        self, samples: Tensor, kernel: LoadedKernel, layer: LayerOptions, boundary: str, padding: PaddingLike
    ) -> Tensor:
        """Apply a kernel to samples `(B, C, *size)`; with `--tap`, the tap with the kernel's weights."""
        from deconv_cli.workflows.apply_kernel import forward as apply_kernel
        from deconv_cli.workflows.apply_kernel import forward_taps
        from deconv_cli.workflows.arithmetic import check_single_kernel

        if self.tap is None:
            return apply_kernel(
                samples,
                kernel.taps,
                dimensions=kernel.kernel.n_axes,
                padding=padding,
                **asdict(layer),
                boundary=boundary,
                bias=kernel.bias,
                dtype=self.given.dtype,
            )
        if layer.groups > 1 or layer.transposed:
            raise UsageError(
                f"custom taps take a stride and a dilation, but this layer has {layer.describe()}; leave "
                f"{'groups' if layer.groups > 1 else 'transposed'} out."
            )
        with running_user_code(is_silent=True) as (_, caught):
            result = forward_taps(
                samples,
                check_single_kernel(kernel.taps),
                name_or_code(self.tap, TAPS, "--tap"),
                padding=padding,
                boundary=boundary,
                stride=layer.stride,
                dilation=layer.dilation,
                bias=kernel.bias,
                dtype=self.given.dtype,
            )
        for line in describe_warnings(caught):
            print_note(line)
        return result
