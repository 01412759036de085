"""`deconv kernel learn`: a kernel, or filters that undo one, by gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deconv_cli.commands.batch_layout import refuse_clashes
from deconv_cli.commands.console import print_note, print_table, print_warning
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.commands.input_files import expand
from deconv_cli.commands.kernel_output import (
    AnswerOptions,
    OutputFile,
    check_kernel_output,
    print_kernel,
    without_paths,
    write_kernel,
)
from deconv_cli.commands.option_groups import KERNEL_OPTION, KernelOptions
from deconv_cli.commands.pair_options import PairOptions, SizeOption, list_pairs, parse_size
from deconv_cli.commands.progress import WorkProgress
from deconv_cli.commands.user_code import describe_warnings, running_user_code
from deconv_cli.errors import UsageError
from deconv_cli.parts import LOSSES
from deconv_cli.vocabulary import MAX_SEED

if TYPE_CHECKING:
    from torch import Tensor

    from deconv_cli.kernels.learning.loss_functions import Loss
    from deconv_cli.report.learning_record import LearningRun

EXAMPLE = (
    "Example: deconv kernel learn sample_images/camera.png sample_images/camera_blurred.png --size 9,9 --loss huber:2 "
    "-o learned.npy"
)


@dataclass(frozen=True)
class LearnOptions:
    """What is learned, from what, and for how long."""

    inverse: Annotated[
        bool, typer.Option("--inverse", help="Learn filters that turn blurred into sharp: deconv forward applies them.")
    ] = False
    kernel: Annotated[list[Path] | None, KERNEL_OPTION] = None
    noise: Annotated[
        str | None,
        typer.Option(
            "--noise",
            metavar="gaussian:SIGMA|poisson:PEAK",
            help="Noise of the pictures that --inverse blurs by --kernel.",
            show_default=False,
        ),
    ] = None
    loss: Annotated[
        str,
        typer.Option(
            "--loss",
            metavar="NAME|FILE.py:FUNCTION",
            help=f"What is minimized: {', '.join(LOSSES)} (huber:2.5 turns straight at 2.5, in units of the samples), "
            "or a function of a prediction and the data in your own file, whose code is run.",
        ),
    ] = "squared"
    max_epochs: Annotated[
        int, typer.Option("--max-epochs", metavar="N", min=1, help="Passes over the data, at most.")
    ] = 100
    patience: Annotated[
        int,
        typer.Option(
            "--patience", metavar="N", min=1, help="Passes without a gain on held-out data, after which it ends."
        ),
    ] = 4
    seed: Annotated[
        int,
        typer.Option(
            "--seed", metavar="N", min=0, max=MAX_SEED, help="Seed of the order of the data, and of the noise."
        ),
    ] = 0
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="FILE.pt",
            help="Save the state in this file after every pass. If the file exists, continue from it, to the same "
            "bits.",
            show_default=False,
        ),
    ] = None
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE.html", help="Write a page with the learning curve.", show_default=False),
    ] = None


def learn(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="SHARP BLURRED...",
            help="Sharp pictures or tensors and the same blurred, in turn, or two folders of them with the same names. "
            "With --kernel sharp ones alone, which are blurred here.",
            show_default=False,
        ),
    ],
    size: SizeOption,
    options: PairOptions,
    learning: LearnOptions,
    printed: AnswerOptions,
    output: OutputFile = None,
) -> None:
    """Learn a kernel, or filters that undo one, by gradient descent, for a loss of your choice."""
    from deconv_cli.report.learning_record import describe_learning

    _check_files(inputs[0], learning, output, printed)
    refuse_clashes([], [*inputs, *(learning.kernel or [])], [output, learning.report, learning.checkpoint])
    with (
        running_user_code(is_silent=True) as (_, caught),
        WorkProgress(verbose=False, is_silent=printed.quiet).shown() as progress,
    ):
        run = _learn(inputs, parse_size(size), options, learning, progress)
    record = describe_learning(run) | {"output": None if output is None else str(output)}
    if output is not None:
        named = {name: record[name] and Path(record[name]).name for name in ("kernel", "loss")}  # without folders
        write_kernel(output, run.learned.taps, without_paths(record) | named)
    if learning.report is not None:
        from deconv_cli.io.output_path import write_page
        from deconv_cli.report.learning_record import render_learning

        write_page(learning.report, render_learning(run))
    if not printed.quiet:
        print_table(run.title, [(name, value) for name, value, _ in run.rows()])
        for note in describe_warnings(caught):
            print_note(note)
    for doubt in run.learned.doubts:
        print_warning(doubt)
    for note in run.notes:
        print_note(note)
    print_kernel(run.learned.taps, record, output, printed)
    if run.learned.doubts:
        raise typer.Exit(ExitCode.UNTRUSTWORTHY)


def _check_files(source: Path, learning: LearnOptions, output: Path | None, printed: AnswerOptions) -> None:
    """Refuse options that do not go together, and files that could not be written."""
    from deconv_cli.io.output_path import check_output_path, check_page_path

    if learning.kernel is not None and not learning.inverse:
        raise UsageError("--kernel blurs the pictures that filters are learned from; add --inverse, or leave it out.")
    if learning.noise is not None and learning.kernel is None:
        raise UsageError("--noise is added to pictures that --kernel blurs; name a kernel, or leave it out.")
    if output is not None:
        check_kernel_output(output, source, force=printed.force)
    if learning.report is not None:
        check_page_path(learning.report, source, force=printed.force)
    if learning.checkpoint is not None:
        if learning.checkpoint.suffix != ".pt":
            raise UsageError(f"--checkpoint is a file of torch.save, but is '{learning.checkpoint}'; end it in .pt.")
        check_output_path(learning.checkpoint, source, force=True)


def _learn(
    inputs: list[Path], size: tuple[int, ...], options: PairOptions, learning: LearnOptions, progress: WorkProgress
) -> LearningRun:
    """Read the pictures, and learn from them."""
    from deconv_cli.report.learning_record import LearningRun
    from deconv_cli.saved_learning import load_learning_state, save_learning_state
    from deconv_cli.workflows.inverse_filters import learn_inverse_filters
    from deconv_cli.workflows.learn_kernel import learn_kernel
    from deconv_cli.workflows.learning_settings import LearningSettings

    data, path = _read(inputs, len(size), options, learning), learning.checkpoint
    settings = LearningSettings.of(
        **options.choices() | {"channels": data.channels, "loss": _load_loss(learning.loss)},
        seed=learning.seed,
        max_epochs=learning.max_epochs,
        patience=learning.patience,
    )
    given: dict[str, Any] = {"settings": settings, "progress": progress}
    if path is not None:
        given["resume"] = load_learning_state(path) if path.exists() else None
        given["keep"] = lambda state: save_learning_state(state, path)
    if learning.inverse:
        filters = learn_inverse_filters(data.pairs, size, kernel=data.kernel, **given)
        learned, quality = filters.learning, filters.quality
    else:
        learned, quality = learn_kernel(data.pairs, size, **given), None
    return LearningRun(
        inputs=data.files,
        settings=settings,
        is_inverse=learning.inverse,
        kernel=None if learning.kernel is None else ", ".join(map(str, learning.kernel)),
        noise=learning.noise,
        loss=learning.loss,
        light=data.light,
        learned=learned,
        quality=quality,
    )


@dataclass(frozen=True, eq=False)
class _Data:
    """What is learned from: sharp and blurred images, and what blurred them, where it is known."""

    files: tuple[str, ...]
    light: str
    pairs: list[tuple[Tensor, Tensor]]
    channels: str
    kernel: Tensor | None = None


def _read(inputs: list[Path], n_axes: int, options: PairOptions, learning: LearnOptions) -> _Data:
    """Read pairs, or sharp pictures that are blurred by the kernel."""
    channels = options.choices()["channels"]
    if learning.kernel is None:
        files = list_pairs(inputs)
        read = [options.read(pair, n_axes) for pair in files]
        pairs = [(sharp, blurred) for (sharp, blurred), _ in read]
        return _Data(tuple(str(path) for pair in files for path in pair), read[0][1], pairs, channels)
    from deconv_cli.commands.loaded_kernel import load_kernels
    from deconv_cli.workflows.arithmetic import check_single_kernel
    from deconv_cli.workflows.inverse_filters import channels_of, simulate_pairs

    found = [file.path for path in inputs for file in expand(path)]
    read = [options.read((path,), n_axes) for path in found]
    loaded = load_kernels(learning.kernel, KernelOptions(), n_axes)
    kernel = check_single_kernel(loaded.taps)
    pairs = simulate_pairs(
        [image for (image,), _ in read], kernel, noise=learning.noise, seed=learning.seed, n_axes=n_axes
    )
    return _Data(tuple(map(str, found)), read[0][1], pairs, options.channels or channels_of(loaded.kernel), kernel)


def _load_loss(text: str) -> str | Loss:
    """Give the name of a loss, or the function in a file.

    Raises:
        UsageError: neither.
    """
    if text.partition(":")[0] in LOSSES or ":" not in text:
        return text
    from deconv_cli.models.named_code import load_named

    loss: Any = load_named(text, "--loss").value
    return loss
