"""Chains of layers at the prompt: `--layers conv1..layer2`, with the model from `--kernel` and `--model`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deconv_cli.commands.invert_options import ExtraOutputs, InvertOptions
from deconv_cli.commands.option_groups import OptionValues, given_options, optional
from deconv_cli.commands.progress import WorkProgress
from deconv_cli.commands.summary import print_chain_summary
from deconv_cli.commands.user_code import MODEL_FILES, ModelOptions, describe_warnings, open_module, running_user_code
from deconv_cli.commands.work import Job, JobResult
from deconv_cli.errors import UsageError
from deconv_cli.schedulers.scheduler import announce_writing
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.vocabulary import OutputDType

if TYPE_CHECKING:
    from torch import Tensor

    from deconv_cli.io import ImageFile

RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
"""Usual values of black and white in the inputs of networks."""
MAX_EXCESS, MIN_PART = 0.02, 0.25
"""An estimate has such a range if it leaves it by at most this part, and uses at least that part of it."""


@dataclass(frozen=True)
class ChainOptions(ModelOptions):
    """Which layers to undo, how long to search for their input, and how to open their model."""

    layers: str | None = optional(
        "--layers A..B|A,B,C",
        "Undo several layers: INPUT is the output of the last one, and the result is the input of the first one. "
        "--kernel names the file of the model. A range follows the order in which the model lists its layers.",
        MODEL_FILES,
    )
    time_limit: float | None = optional(
        "--time-limit SECONDS", "With --layers: stop after this time and write the best input found.", MODEL_FILES
    )


@dataclass(frozen=True)
class Chain:
    """The layers, the file of their model, and all that was typed about them."""

    layers: str
    path: Path
    typed: ChainOptions


def read_chain(
    typed: ChainOptions, kernel: list[Path] | None, extra: ExtraOutputs, others: OptionValues
) -> Chain | None:
    """Read the options of a chain; `None` without `--layers`. Idle options are a `UsageError`."""
    if typed.layers is None:
        idle = list(given_options(typed))
        if idle:
            advice = "add it, or write the layer to a file with deconv kernel extract and give that as --kernel"
            advice = "leave it out" if idle[0] == "--time-limit" else advice
            raise UsageError(f"{idle[0]} is for --layers, which is missing; {advice}.")
        return None
    given = list(others)
    given += ["--truth, --error-map or --trust-mask"] if extra.kept_options else []
    if given:
        raise UsageError(f"--layers does not go with {given[0]}; leave one of the two out.")
    if kernel is None or len(kernel) != 1:
        raise UsageError("--layers needs one --kernel FILE, with the model or its weights.")
    return Chain(typed.layers, kernel[0], typed)


class ChainRestoration:
    """Restores the input of a chain of layers from one activation after another.

    Raises:
        UsageError: the model lacks these layers, they do not follow one another, or the file has weights only.
        InputRefusedError: a file that is unsafe, damaged or no model.
    """

    def __init__(self, chain: Chain, work: InvertOptions) -> None:
        from deconv_cli.chains.chain_layers import check_order, choose_layers
        from deconv_cli.report.chain_page import ModelInput

        self._chain, self._work = chain, work
        self._settings = ReconstructionSettings.trusted(**work.settings)
        with running_user_code(is_silent=True) as (_, caught):
            stored, built = open_module(chain.path, chain.typed)
            module = built or stored.module
            if module is None:
                raise UsageError(
                    f"'{chain.path}' holds weights without the layers that use them; give the weights, and name the "
                    "class with --model file.py:Class."
                )
            parent, self._layers = choose_layers(module, chain.layers)
            notes = stored.notes
            if not check_order(parent, self._layers):
                name = type(parent).__name__
                notes += (f"{name} could not be run, so it is assumed to apply these layers in this order",)
        self._model = ModelInput(str(chain.path), stored.kind, stored.sha256, chain.typed.model, chain.layers)
        self._notes = (*notes, *describe_warnings(caught))

    def restore(self, job: Job, source: ImageFile, progress: WorkProgress) -> JobResult:
        """Restore one input, write the result, and describe it."""
        from deconv_cli.chains.chain_inversion import chain_input_shape, invert_chain
        from deconv_cli.io.atomic import write_page
        from deconv_cli.io.codec import codec_of_suffix
        from deconv_cli.report.chain_page import ChainRun, describe_chain_run, render_chain

        work = self._work
        image = work.move(source)
        shape = chain_input_shape(image.values, self._layers, self._settings.input_size)
        # A tensor becomes a picture of whole numbers, and nobody said how.
        shows = not image.is_picture and work.files.output_dtype is None
        shows = shows and codec_of_suffix(job.target).holds_whole_numbers_only
        plan = work.plan(job, image, shape[0], output_dtype=OutputDType.UINT8 if shows else None)
        with running_user_code(is_silent=True) as (_, caught):
            progress.begin("restoring", limit=self._settings.max_iterations)
            result = invert_chain(
                image.values,
                self._layers,
                settings=self._settings,
                time_limit=self._chain.typed.time_limit,
                progress=progress,
            )
        values, shown = as_picture(result.image.cpu()) if shows else (result.image.cpu(), ())
        prepared = plan.prepare(values)
        chain = self._chain
        options = {"--kernel": chain.path, **given_options(chain.typed), **self._settings.as_options()}
        run = ChainRun(
            model=self._model,
            inversion=result,
            notes=(*self._notes, *image.notes, *describe_warnings(caught), *shown, *prepared.notes),
            rerun=work.rerun(job.source, options, job.target, None if shows else prepared.dtype),
            **work.describe(job, image, prepared, result.image.dtype, progress.started),
        )
        record = describe_chain_run(run)
        announce_writing()
        prepared.write(record)
        if work.extra.report is not None:
            write_page(work.extra.report, render_chain(run, image.values))
        return JobResult(record, partial(print_chain_summary, run))


def as_picture(image: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """Map the input of a network to 0 to 255, black to white.

    Args:
        image: shape `(B, C, H, W)`, in one of the usual ranges or normalized in an unknown way.

    Returns:
        The samples, and a note that names the range.
    """
    low, high = float(image.min()), float(image.max())
    black, white = (low, high) if high > low else (low - 0.5, low + 0.5)
    for first, last in RANGES:
        excess, span = max(first - low, high - last), last - first
        if excess <= MAX_EXCESS * span and high - low >= MIN_PART * span:
            black, white = first, last
            break
    note = f"values from {black:.4g} to {white:.4g} are shown as 0 to 255; a .safetensors file holds them as they are"
    return 255 * (image - black) / (white - black), (note,)
