"""What `deconv forward` does to each of its inputs."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deconv_cli.commands.console import print_note
from deconv_cli.commands.context import Context, LoadedInput, describe_output, environment_of, pick, rerun_line
from deconv_cli.commands.job import Finish, Job, Outcome, Process, Source, Work
from deconv_cli.commands.loaded_kernel import LoadedKernel, load_kernels
from deconv_cli.commands.microscope_kernel import MICROSCOPE, is_microscope, load_microscope
from deconv_cli.commands.option_groups import FileOptions, KernelOptions, OptionValues
from deconv_cli.commands.progress import WorkProgress
from deconv_cli.commands.settings_options import LAYER_SETTINGS, layer_options
from deconv_cli.commands.summary import print_forward_summary
from deconv_cli.commands.terminal_picture import show_picture
from deconv_cli.commands.user_code import describe_warnings, running_user_code
from deconv_cli.errors import UsageError
from deconv_cli.layer_options import PLAIN, LayerOptions
from deconv_cli.parts import TAPS
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.vocabulary import MAX_SEED, ArithmeticDType, DeviceChoice, PaddingLike, format_padding

if TYPE_CHECKING:
    from torch import Tensor

    from deconv_cli.io import OutputPlan
    from deconv_cli.operators.tap_convolution import Tap
    from deconv_cli.workflows.apply_kernel import Noise
    from deconv_cli.workflows.light import ChosenLight


@dataclass(frozen=True)
class TypedConvolution:
    """What was typed of a convolution; `None` for what was left open.

    Attributes:
        boundary: what lies outside.
        padding: how far the kernel reaches outside.
        light: in what it acts.
        given: the precision of the arithmetic, and the options of a layer.
        tap: for products.
    """

    boundary: str | None
    padding: PaddingLike | None
    light: str
    given: ReconstructionSettings
    tap: str | None


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
    def of(cls, typed: TypedConvolution, kernel: LoadedKernel) -> _Convolution:
        """Take what was typed, else what the model file says, else the defaults."""
        known = kernel.recorded
        layer = typed.given.layer_over(PLAIN if known is None else known.layer)
        boundary, padding = typed.boundary, typed.padding
        if boundary is None:
            boundary = "zero" if known is None else known.boundary
        if padding is None:
            padding = "same" if known is None else known.padding
        return cls(boundary, padding, typed.light, typed.given, typed.tap, layer)

    @property
    def dtype(self) -> ArithmeticDType | None:
        """The precision of the arithmetic, where it was typed."""
        return self.given.dtype

    def apply(self, samples: Tensor, kernel: LoadedKernel) -> Tensor:
        """Apply a kernel to samples `(B, C, *size)`, or custom taps with its weights."""
        from deconv_cli.workflows.apply_kernel import forward as apply_kernel

        if self.tap is not None:
            return self._apply_tap(self.tap, samples, kernel)
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

    def _apply_tap(self, tap: str, samples: Tensor, kernel: LoadedKernel) -> Tensor:
        """Apply a tap, as it was typed, with the weights of a kernel.

        Raises:
            UsageError: neither a name nor a function, or a layer with groups or in the transposed direction.
        """
        from deconv_cli.workflows.apply_kernel import forward_taps
        from deconv_cli.workflows.arithmetic import check_single_kernel

        if self.layer.groups > 1 or self.layer.transposed:
            raise UsageError(
                f"custom taps take a stride and a dilation, but this layer is one with {self.layer.describe()}; leave "
                f"{'groups' if self.layer.groups > 1 else 'transposed'} out."
            )
        with running_user_code(is_silent=True) as (_, caught):
            result = forward_taps(
                samples,
                check_single_kernel(kernel.taps),
                _load_tap(tap),
                padding=self.padding,
                boundary=self.boundary,
                stride=self.layer.stride,
                dilation=self.layer.dilation,
                bias=kernel.bias,
                dtype=self.dtype,
            )
        for line in describe_warnings(caught):
            print_note(line)
        return result


def _load_tap(text: str) -> Tap | str:
    """Give the name of a tap, or the function that was named.

    Raises:
        UsageError: neither a name nor a function.
        InputRefusedError: importing the function's file takes too much.
    """
    from deconv_cli.models.named_code import load_named

    if text in TAPS:
        return text
    if ":" not in text:
        raise UsageError(f"--tap must be one of {', '.join(TAPS)}, or file.py:function, but is '{text}'.")
    tap: Tap = load_named(text, "--tap").value
    return tap


@dataclass(frozen=True)
class AddedNoise:
    """What is added: the noise as it was given, `None` for none, and its seed."""

    text: str | None
    model: Noise | None
    seed: int

    @classmethod
    def parse(cls, text: str | None, seed: int | None) -> AddedNoise:
        """Read what was typed.

        Raises:
            UsageError: a seed without noise, or no noise that is known.
        """
        if text is None and seed is not None:
            raise UsageError("--seed draws noise, which nothing asks for; leave it out, or add --noise.")
        if text is None:
            return cls(None, None, 0)
        from deconv_cli.workflows.apply_kernel import Noise

        return cls(text, Noise.parse(text), seed or 0)

    def of_file(self, job: Job) -> AddedNoise:
        """Give each of several files noise of its own: its seed is made of the one given and the path of the input."""
        if job.n_jobs == 1:
            return self
        digest = hashlib.sha256(f"{self.seed} {job.source.as_posix()}".encode(errors="surrogateescape")).digest()
        return replace(self, seed=int.from_bytes(digest[:8]) % (MAX_SEED + 1))


@dataclass(frozen=True)
class ForwardWork(Work):
    """The options of `deconv forward`.

    Attributes:
        kernels: files, formulas, or what else `--kernel` takes.
        kernel_options: how to read them.
        convolution: what was typed of it.
        added: the noise.
        files: how to read and write.
        device: where to compute.
        first: the first input, whose axes tell what some kernels are.
    """

    kernels: list[Path]
    kernel_options: KernelOptions
    convolution: TypedConvolution
    added: AddedNoise
    files: FileOptions
    device: DeviceChoice
    first: Path

    @property
    def is_alone(self) -> bool:  # type: ignore[override]
        """Whether code from outside runs, which may print and warn."""
        return self.convolution.tap is not None or is_microscope(self.kernels, self.kernel_options)

    def read(self, path: Path) -> Source:
        """Read an input."""
        return Source(self.files.read(path))

    @property
    def device_type(self) -> str:
        """Where the arithmetic is."""
        return pick(self.device).type

    def open(self) -> Process:
        """Read the kernel."""
        dimensions = self.convolution.given.dimensions
        if is_microscope(self.kernels, self.kernel_options):
            return self._apply_optics
        read_first = partial(self.files.read, self.first)
        loaded = load_kernels(self.kernels, self.kernel_options, dimensions, read_first, [MICROSCOPE])
        return partial(self._apply, loaded)

    def _apply_optics(self, job: Job, source: Source, progress: WorkProgress) -> Finish:
        """Apply the kernels of the optics that an input names."""
        loaded = load_microscope(str(self.kernels[0]), source.image, self.convolution.given.dimensions)
        return self._apply(loaded, job, source, progress)

    def _apply(self, kernel: LoadedKernel, job: Job, source: Source, progress: WorkProgress) -> Finish:
        """Convolve one input; what it gives writes the result, and describes it."""
        from deconv_cli.workflows.light import choose_light

        progress.begin("convolving")
        if self.added.model is not None and self.convolution.tap is None:
            taps, notes = self.added.model.kernel_for(kernel.taps, kernel.kernel.n_axes)
            kernel = replace(kernel, taps=taps, notes=(*kernel.notes, *notes))
        context = Context("forward", kernel, self.files, pick(self.device))
        convolution = _Convolution.of(self.convolution, kernel)
        loaded = context.load(source)
        chosen = choose_light(convolution.light, loaded.image.tone_curve)
        layer = convolution.layer
        n_channels = kernel.kernel.with_layer(layer).n_outputs(loaded.values.shape[1])
        same_size = context.keeps_size(convolution.padding, layer)
        plan = context.plan(job, loaded, n_channels=n_channels, same_size=same_size)
        result = convolution.apply(chosen.to_light(loaded.values, convolution.dtype), kernel)
        added = self.added.of_file(job)
        if added.model is not None:
            result = added.model.add(result, added.seed)
        made = _Made(context, convolution, added, chosen, loaded, chosen.to_stored(result))
        return partial(made.finish, job, plan)


@dataclass(frozen=True, eq=False)
class _Made:
    """One input convolved: by what, in which light, with which noise."""

    context: Context
    convolution: _Convolution
    added: AddedNoise
    light: ChosenLight
    loaded: LoadedInput
    result: Tensor

    def finish(self, job: Job, plan: OutputPlan) -> Outcome:
        """Write the result, and describe it."""
        from deconv_cli.report.run import ForwardRun
        from deconv_cli.report.run_record import describe_run

        context, loaded, result, convolution = self.context, self.loaded, self.result, self.convolution
        prepared = plan.prepare(result.cpu())
        kernel = context.loaded
        done = ForwardRun(
            command=context.command,
            source=loaded.describe(job.source),
            kernel=kernel.source,
            output=describe_output(job.target, prepared),
            notes=context.notes(loaded, prepared),
            environment=environment_of(context.device, result.dtype, loaded.started),
            rerun=rerun_line(
                context.command,
                job.source,
                kernel.options | self._options(),
                device=context.device.type,
                output=job.target,
                files=context.files,
                output_dtype=prepared.dtype,
            ),
            padding=convolution.padding,
            boundary=convolution.boundary,
            input_size=tuple(loaded.values.shape[-kernel.kernel.n_axes :]),
            layer=convolution.layer,
            light=self.light,
            noise=self.added.text,
            seed=None if self.added.text is None else self.added.seed,
            tap=convolution.tap,
        )
        record = describe_run(done)
        prepared.write(record)
        show = partial(show_picture, result, n_axes=kernel.kernel.n_axes, is_color=loaded.image.is_picture)
        return Outcome(record, partial(print_forward_summary, done), (), show)

    def _options(self) -> OptionValues:
        """Give the options that make the same again."""
        convolution, added = self.convolution, self.added
        typed = [name for name in LAYER_SETTINGS if getattr(convolution.given, name) is not None]
        return {
            "--padding": format_padding(convolution.padding),
            "--boundary": convolution.boundary,
            **layer_options(convolution.layer, typed),
            "--light": self.light.light,
            "--noise": added.text,
            "--seed": None if added.text is None else added.seed,
            "--tap": convolution.tap,
            "--dtype": str(self.result.dtype).removeprefix("torch."),
        }
