"""Chains of layers at the prompt: `--layers conv1..layer2`, with the model from `--kernel` and `--model`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deconv_cli.commands.context import LoadedInput, describe_output, environment_of, load, rerun_line
from deconv_cli.commands.job import Finish, Job, Outcome, Source
from deconv_cli.commands.model_options import MODEL_FILES, ModelOptions, open_module
from deconv_cli.commands.option_groups import FileOptions, OptionValues, PrintOptions
from deconv_cli.commands.outputs import ExtraOutputs
from deconv_cli.commands.progress import WorkProgress
from deconv_cli.commands.settings_options import SettingValues
from deconv_cli.commands.summary import print_chain_summary
from deconv_cli.commands.terminal_picture import show_picture
from deconv_cli.commands.user_code import describe_warnings, running_user_code
from deconv_cli.errors import UsageError
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.vocabulary import OutputDType

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from deconv_cli.chains.chain_inversion import ChainInversion
    from deconv_cli.io import OutputPlan
    from deconv_cli.report.chain_page import ModelInput

RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
"""Black and white of the pictures that networks are shown."""
MAX_EXCESS, MIN_PART = 0.02, 0.25
"""By which part of such a range an estimate may leave it, and which part it uses at least, to be taken for its own."""


LayersOption = Annotated[
    str | None,
    typer.Option(
        "--layers",
        metavar="A..B|A,B,C",
        help="The input is the output of the last of these layers, and the input of the first is wanted back; --kernel "
        "names the file of the model. A range goes by the order in which the model lists its layers.",
        show_default=False,
        rich_help_panel=MODEL_FILES,
    ),
]


TimeLimitOption = Annotated[
    float | None,
    typer.Option(
        "--time-limit",
        metavar="SECONDS",
        help="Time to search for an input of --layers; then the best one so far is written.",
        show_default=False,
        rich_help_panel=MODEL_FILES,
    ),
]


@dataclass(frozen=True)
class Chain:
    """Which layers of which model, and how long to look for their input, as they were typed."""

    layers: str
    path: Path
    model: ModelOptions
    time_limit: float | None

    def as_options(self) -> OptionValues:
        """Give the options that would be typed again."""
        options = {"--kernel": self.path, "--layers": self.layers, "--time-limit": self.time_limit}
        return options | _typed(self.model)


def _typed(model: ModelOptions) -> OptionValues:
    return {f"--{name.replace('_', '-')}": value for name, value in vars(model).items()}


def read_chain(
    layers: str | None,
    model: ModelOptions,
    kernel: list[Path] | None,
    extra: ExtraOutputs,
    time_limit: float | None,
    others: OptionValues,
) -> Chain | None:
    """Find out whether a chain is to be undone, and refuse what does not go with it, or is of no use without.

    Args:
        layers: what `--layers` says.
        model: how to open the model.
        kernel: what `--kernel` names.
        extra: outputs besides the estimate.
        time_limit: what `--time-limit` says.
        others: further options that do not go with a chain, with their values; `None` for those not given.

    Raises:
        UsageError: for the first that would be ignored.
    """
    if layers is None:
        options = {"--time-limit": time_limit, **_typed(model)}
        idle = [name for name, value in options.items() if value is not None]
        if idle:
            raise UsageError(f"{idle[0]} is for --layers, which is missing; add it, or leave {idle[0]} out.")
        return None
    given = [name for name, value in others.items() if value is not None]
    given += ["--truth, --error-map or --trust-mask"] if extra.is_prediction_kept else []
    if given:
        raise UsageError(f"--layers does not go with {given[0]}; leave one of the two out.")
    if kernel is None or len(kernel) != 1:
        raise UsageError("--layers wants one --kernel FILE, which holds the model or its weights.")
    return Chain(layers, kernel[0], model, time_limit)


def load_chain(chain: Chain) -> tuple[list[tuple[str, nn.Module]], ModelInput, tuple[str, ...]]:
    """Read the model and choose its layers; gives the layers with their names, where they came from, and notes.

    Raises:
        UsageError: layers that the model has not, that do not follow one another, or weights without a class.
        InputRefusedError: a file that is unsafe, damaged or no model.
    """
    from deconv_cli.chains.chain_layers import check_order, choose_layers
    from deconv_cli.report.chain_page import ModelInput

    stored, built = open_module(chain.path, chain.model)
    module = built or stored.module
    if module is None:
        holds = "an exported program" if stored.exported is not None else "weights"
        raise UsageError(
            f"'{chain.path}' holds {holds} but not the layers that compute with them; give the weights, and name the "
            "class with --model file.py:Class."
        )
    parent, layers = choose_layers(module, chain.layers)
    notes = stored.notes
    if not check_order(parent, layers):
        notes += (
            f"whether {type(parent).__name__} runs these layers one after the other could not be tried, and was taken "
            "for granted",
        )
    source = ModelInput(str(chain.path), stored.kind.value, stored.sha256, chain.model.model, chain.layers)
    return layers, source, notes


class ChainRestoration:
    """Takes one activation after another back through a chain of layers.

    Args:
        chain: which layers.
        files: how to read and write.
        device: where to compute.
        settings: those that were typed.
        printed: what is printed.
        page: the HTML file of a report; `None` for none.
    """

    def __init__(
        self,
        chain: Chain,
        files: FileOptions,
        device: torch.device,
        settings: SettingValues,
        printed: PrintOptions,
        page: Path | None,
    ) -> None:
        self._chain, self._files, self._device, self._printed = chain, files, device, printed
        self._page = page
        self._settings = ReconstructionSettings.of(**settings)
        with running_user_code(is_silent=True) as (_, caught):
            self._layers, self._model, notes = load_chain(chain)
        self._notes = (*notes, *describe_warnings(caught))

    def restore(self, job: Job, source: Source, progress: WorkProgress) -> Finish:
        """Restore one input; what it gives writes the result, and describes it."""
        from deconv_cli.chains.chain_inversion import chain_input_shape, invert_chain
        from deconv_cli.io import plan_output

        image = source.image
        loaded = load(source, image, self._device)
        shape = chain_input_shape(loaded.values, self._layers, self._settings.input_size)
        shows = self._shows(job, loaded)
        plan = plan_output(
            job.target,
            image,
            n_channels=shape[0],
            output_dtype=OutputDType.UINT8 if shows else self._files.output_dtype,
            force=self._files.force or job.replaces,
            same_size=False,
            make_folder=job.make_folder,
            n_levels=self._files.pyramid,
        )
        with running_user_code(is_silent=True) as (_, caught):
            progress.begin("restoring", limit=self._settings.max_iterations)
            result = invert_chain(
                loaded.values,
                self._layers,
                settings=self._settings,
                time_limit=self._chain.time_limit,
                progress=progress,
            )
        return partial(self._finish, job, loaded, plan, result, describe_warnings(caught), shows=shows)

    def _finish(
        self,
        job: Job,
        loaded: LoadedInput,
        plan: OutputPlan,
        result: ChainInversion,
        warnings: list[str],
        *,
        shows: bool,
    ) -> Outcome:
        """Write what came of one input, and describe it."""
        from deconv_cli.report.chain_page import ChainRun, describe_chain_run

        values, shown = as_picture(result.image.cpu()) if shows else (result.image.cpu(), ())
        prepared = plan.prepare(values)
        run = ChainRun(
            source=loaded.describe(job.source),
            model=self._model,
            output=describe_output(job.target, prepared),
            inversion=result,
            notes=(*self._notes, *loaded.image.notes, *warnings, *shown, *prepared.notes),
            environment=environment_of(self._device, result.image.dtype, loaded.started),
            rerun=rerun_line(
                "invert",
                job.source,
                self._chain.as_options() | self._settings.as_options(),
                device=self._device.type,
                output=job.target,
                files=self._files,
                output_dtype=None if shows else prepared.dtype,
            ),
        )
        record = describe_chain_run(run)
        prepared.write(record)
        if self._page is not None:
            from deconv_cli.io.atomic import write_page
            from deconv_cli.report.chain_page import render_chain

            write_page(self._page, render_chain(run, loaded.values))
        return Outcome(
            record,
            partial(print_chain_summary, run, verbose=self._printed.verbose),
            doubts=tuple(doubt.sentence for doubt in result.doubts),
            show=partial(show_picture, result.image, is_color=True),
        )

    def _shows(self, job: Job, loaded: LoadedInput) -> bool:
        """Return whether a tensor goes into a picture of whole numbers, of which nobody said how."""
        from deconv_cli.io.codec import codec_of_suffix

        if loaded.image.is_picture or self._files.output_dtype is not None:
            return False
        return codec_of_suffix(job.target).holds_whole_numbers_only


def as_picture(image: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """Map what a network was shown to 0 to 255, black to white, and say how.

    Args:
        image: shape `(B, C, H, W)`: within a usual range, or normalized in a way that nobody knows.

    Returns:
        The samples, and a note.
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
