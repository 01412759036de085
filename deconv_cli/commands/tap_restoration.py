"""Convolutions with taps other than products at the prompt: `--tap tan-sum` or `--tap file.py:function`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deconv_cli.commands.console import print_note
from deconv_cli.commands.context import Context, LoadedInput, describe_output, environment_of
from deconv_cli.commands.job import Finish, Job, Outcome, Source
from deconv_cli.commands.loaded_kernel import LoadedKernel
from deconv_cli.commands.option_groups import OptionValues
from deconv_cli.commands.outputs import ExtraOutputs
from deconv_cli.commands.progress import WorkProgress
from deconv_cli.commands.restoration import recorded_convolution
from deconv_cli.commands.settings_options import SettingValues, layer_options
from deconv_cli.commands.summary import print_tap_summary
from deconv_cli.commands.terminal_picture import show_picture
from deconv_cli.commands.user_code import describe_warnings, running_user_code
from deconv_cli.errors import UsageError
from deconv_cli.layer_options import PLAIN, LayerOptions
from deconv_cli.parts import TAPS
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.vocabulary import InputKind, Light, PaddingLike

if TYPE_CHECKING:
    from torch import Tensor

    from deconv_cli.io import OutputPlan
    from deconv_cli.operators.tap_convolution import Tap
    from deconv_cli.workflows.custom_taps import TapReconstruction

TapOption = Annotated[
    str | None,
    typer.Option(
        "--tap",
        metavar="NAME|FILE.py:FUNCTION",
        help=f"What a tap computes from a pixel and a weight, instead of their product: {', '.join(TAPS)}, or a "
        "function of two tensors in your own file, whose code is run. Taps act on the samples as they are stored.",
        show_default=False,
        rich_help_panel="The convolution",
    ),
]
StartOption = Annotated[
    float | None,
    typer.Option(
        "--start",
        metavar="V",
        help="For --tap: the value of all pixels from which the iteration starts. Default: 0.",
        show_default=False,
        rich_help_panel="Computation",
    ),
]


def load_tap(text: str) -> Tap:
    """Give the tap of a name, or the function that was named.

    Raises:
        UsageError: neither a name nor a function.
        InputRefusedError: importing the function's file takes too much.
    """
    from deconv_cli.models.named_code import load_named
    from deconv_cli.workflows.tap_model import find_tap

    if text in TAPS:
        return find_tap(text)
    if ":" not in text:
        raise UsageError(f"--tap must be one of {', '.join(TAPS)}, or file.py:function, but is '{text}'.")
    return find_tap(load_named(text, "--tap").value)


def stored_light(light: str) -> str:
    """Take the samples as they are stored, which custom taps act on.

    Raises:
        UsageError: light was to be linear.
    """
    if light == Light.LINEAR:
        raise UsageError("--tap acts on the samples as they are stored, not on light; leave --light out.")
    return Light.STORED


def apply_tap(
    tap: str,
    samples: Tensor,
    kernel: LoadedKernel,
    *,
    padding: PaddingLike,
    boundary: str,
    layer: LayerOptions,
    dtype: str | None,
) -> Tensor:
    """Apply a tap, as it was typed, with the weights of a kernel to samples `(B, C, H, W)`."""
    from deconv_cli.workflows.arithmetic import check_single_kernel
    from deconv_cli.workflows.custom_taps import forward_taps
    from deconv_cli.workflows.tap_model import check_layer

    check_layer(layer)
    with running_user_code(is_silent=True) as (_, caught):
        function = load_tap(tap)
        result = forward_taps(
            samples,
            check_single_kernel(kernel.taps),
            function,
            padding=padding,
            boundary=boundary,
            stride=layer.stride,
            dilation=layer.dilation,
            bias=kernel.bias,
            dtype=dtype,
        )
    for line in describe_warnings(caught):
        print_note(line)
    return result


def refuse_beside_tap(tap: str | None, start: float | None, extra: ExtraOutputs, factor: Path | None) -> None:
    """Refuse what does not go with a custom tap, and a start without one.

    Raises:
        UsageError: for the first that would be ignored.
    """
    if tap is None and start is not None:
        raise UsageError("--start is where the iteration for --tap starts, which is missing; leave --start out.")
    if tap is None:
        return
    if factor is not None:
        raise UsageError("--factor is an inverse that was built for products, so that it does not go with --tap.")
    if extra.need_prediction:
        raise UsageError(
            "the error is predicted where the estimate is linear in the data; that of --tap is not, so that it does "
            "not go with --report, --truth, --error-map or --trust-mask."
        )


class TapRestoration:
    """Restores one input after another from what a convolution with custom taps made of them.

    Args:
        context: weights, device and files.
        tap: the tap as it was typed.
        settings: those that were typed.
        start: where the iteration starts.
    """

    def __init__(self, context: Context, tap: str, settings: SettingValues, start: float | None) -> None:
        self._context = context
        self._text = tap
        self._settings = settings
        self._start = start

    def restore(self, job: Job, source: Source, progress: WorkProgress) -> Finish:
        """Restore one input; what it gives writes the result, and describes it."""
        from deconv_cli.workflows.arithmetic import check_single_kernel
        from deconv_cli.workflows.custom_taps import invert_taps

        context = self._context
        loaded = context.load(source)
        recorded, notes = recorded_convolution(loaded.image, context.loaded.source.sha256)
        if recorded is not None and Path(str(recorded.tap)).name != Path(self._text).name:  # a file keeps no folders
            meant = "plain products" if recorded.tap is None else f"--tap {recorded.tap}"
            note = f"deconv forward made this file with {meant}; make sure that this is another way to say the same"
            notes = (note, *notes)
        kind = InputKind.PICTURE if loaded.image.is_picture else InputKind.TENSOR
        settings = ReconstructionSettings.of(**{"defaults": kind} | self._settings)
        padding = settings.padding or (recorded.padding if recorded is not None else "same")
        layer = settings.layer_over(PLAIN if recorded is None else recorded.layer)
        n_channels = context.loaded.kernel.n_inputs(loaded.values.shape[1])
        plan = context.plan(job, loaded, n_channels=n_channels, same_size=context.keeps_size(padding, layer))
        with running_user_code(is_silent=True) as (_, caught):
            progress.begin("restoring", goal=settings.tolerance, limit=settings.max_iterations)
            result = invert_taps(
                loaded.values,
                check_single_kernel(context.loaded.taps),
                load_tap(self._text),
                settings=settings,
                bias=context.loaded.bias,
                start=self._start or 0.0,
                recorded=recorded,
                progress=progress,
            )
        return partial(self._finish, job, loaded, plan, result, (*notes, *describe_warnings(caught)))

    def _finish(
        self, job: Job, loaded: LoadedInput, plan: OutputPlan, result: TapReconstruction, notes: tuple[str, ...]
    ) -> Outcome:
        """Write what came of one input, and describe it."""
        from deconv_cli.report.run import TapRun
        from deconv_cli.report.run_record import describe_run

        context = self._context
        prepared = plan.prepare(result.image.cpu())
        run = TapRun(
            command=context.command,
            source=loaded.describe(job.source),
            kernel=context.loaded.source,
            output=describe_output(job.target, prepared),
            notes=context.notes(loaded, prepared, *notes),
            environment=environment_of(context.device, result.image.dtype, loaded.started),
            rerun=context.rerun(job, prepared, self._options(result)),
            tap=self._text,
            start=self._start or 0.0,
            reconstruction=result,
        )
        record = describe_run(run)
        prepared.write(record)
        return Outcome(
            record,
            partial(print_tap_summary, run),
            doubts=tuple(doubt.sentence for doubt in result.doubts),
            show=partial(show_picture, result.image, is_color=loaded.image.is_picture),
        )

    def _options(self, result: TapReconstruction) -> OptionValues:
        """Give the options that make the same estimate again."""
        kept = ["--boundary", "--padding", "--lambda", "--penalty", "--tolerance", "--max-iterations", "--max-memory"]
        kept += ["--input-size"] if result.settings.input_size else []
        kept += ["--dimensions"] if "dimensions" in self._settings else []
        options = result.settings.as_options()
        typed: OptionValues = {name: options[name] for name in kept if name in options}
        return {
            **typed,
            **layer_options(result.settings, self._settings),
            "--tap": self._text,
            "--start": self._start,
            "--dtype": str(result.image.dtype).removeprefix("torch."),
        }
