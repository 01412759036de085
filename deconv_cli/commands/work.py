"""The work of a command on each input file: the job, what was read for it, its result, and the line that repeats it."""

from __future__ import annotations

import shlex
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeAlias

from deconv_cli.commands.option_groups import FileOptions, OptionValues, option
from deconv_cli.commands.settings_options import ERROR
from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import DeviceChoice, OutputDType

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from deconv_cli.blocks.block_problem import BlockProblem
    from deconv_cli.commands.loaded_kernel import LoadedKernel
    from deconv_cli.commands.progress import WorkProgress
    from deconv_cli.io import ImageFile, OutputPlan, PreparedOutput
    from deconv_cli.io.region_arrays import RegionSource
    from deconv_cli.report.run import Environment, InvertRun
    from deconv_cli.settings import ReconstructionSettings

LARGE_FILE_BYTES = 64 * 2**20
"""Inputs from this size on are restored one by one, so that only one is in memory at a time."""


@dataclass(frozen=True)
class Job:
    """One of `n_jobs` inputs, numbered from 1, and its output file, whose folder may have to be made."""

    source: Path
    target: Path
    make_folder: bool = False
    number: int = 1
    n_jobs: int = 1

    @property
    def label(self) -> str:
        """Its number in words; empty for the only job."""
        return "" if self.n_jobs == 1 else f"file {self.number} of {self.n_jobs}"


@dataclass(frozen=True, eq=False)
class LargeInput:
    """An input of which only a corner was read, its kernel, and notes on the settings, a sentence each."""

    source: RegionSource
    corner: ImageFile
    loaded: LoadedKernel
    problem: BlockProblem
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class LoadedFile:
    """An input, or the corner of a large one that is restored by parts.

    `started` is the time at which reading began, in the performance counter's time.
    """

    image: ImageFile
    large: LargeInput | None = None
    started: float = 0.0


def print_nothing() -> None:
    """Print nothing: the images of the result are gone."""


@dataclass(frozen=True, eq=False)
class JobResult:
    """The result of one job.

    Attributes:
        record: the report.
        print_summary: prints it as a table for people.
        doubts: reasons not to trust the result, a sentence each; empty if it is trusted.
        warnings: other warnings, a sentence each.
        is_partial: whether other jobs have to complete the output.
        seconds: time of reading, arithmetic and writing.
    """

    record: dict[str, Any]
    print_summary: Callable[[], None] = print_nothing
    doubts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    is_partial: bool = False
    seconds: float = 0.0


Process: TypeAlias = "Callable[[Job, LoadedFile, WorkProgress], JobResult]"
"""Does the arithmetic for one input and writes the result, in any thread."""


def is_large(path: Path) -> bool:
    """Return whether an input is large: a file by its size; a folder of chunks counts as large."""
    try:
        return path.is_dir() or path.stat().st_size >= LARGE_FILE_BYTES
    except OSError:
        return False


@dataclass(frozen=True, kw_only=True)
class Work(ABC):
    """The work of a command on each of its inputs; small, so that it can be sent to another process."""

    command: ClassVar[str]
    files: FileOptions
    device: DeviceChoice

    @property
    def is_alone(self) -> bool:
        """Whether it changes something that all threads share, such as the standard output."""
        return False

    @abstractmethod
    def read(self, path: Path) -> LoadedFile:
        """Read an input."""

    @abstractmethod
    def open(self) -> Process:
        """Prepare what all inputs share, such as the kernel; a file that cannot be read is a `DeconvError`."""

    def memory(self) -> int:
        """Return the memory in bytes that all inputs in work may take together: half of the free memory."""
        from deconv_cli.operators.synchronize import free_memory

        return free_memory(self.place) // 2

    def for_workers(self, n_sharing: int) -> Self:
        """Return the same work for workers, `n_sharing` of which share the memory.

        They replace existing outputs, since one of them may repeat a job after another one died.
        """
        del n_sharing
        return replace(self, files=replace(self.files, force=True))

    def refuse_existing(self, job: Job) -> None:
        """Refuse, by `DeconvError`, a job whose output exists, before it is given to a worker."""
        from deconv_cli.io.codec import codec_of_suffix
        from deconv_cli.io.output import check_output_files

        codec = codec_of_suffix(job.target)
        check_output_files(job.target, codec, job.source, force=self.files.force, make_folder=job.make_folder)

    @property
    def place(self) -> torch.device:
        """The device of the arithmetic."""
        from deconv_cli.workflows.arithmetic import pick_device

        return pick_device(self.device)

    @property
    def device_type(self) -> str:
        """The type of the device."""
        return self.place.type

    def move(self, image: ImageFile) -> ImageFile:
        """Move the samples of an image to the device."""
        return replace(image, values=image.values.to(self.place))

    def plan(
        self, job: Job, image: ImageFile, n_channels: int, *, same_size: bool, output_dtype: OutputDType | None = None
    ) -> OutputPlan:
        """Check that the output can be written, before anything is computed."""
        from deconv_cli.io import plan_output

        return plan_output(
            job.target,
            image,
            n_channels=n_channels,
            output_dtype=output_dtype or self.files.output_dtype,
            force=self.files.force,
            same_size=same_size,
            make_folder=job.make_folder,
        )

    def describe(
        self, job: Job, image: ImageFile, prepared: PreparedOutput, dtype: torch.dtype, started: float
    ) -> dict[str, Any]:
        """Describe the input, the output, and what a result was computed with, up to now."""
        from deconv_cli.report.run import InputFile, OutputFile

        written = (tuple(prepared.shape), prepared.axes, prepared.dtype, prepared.samples_sha256)
        return {
            "source": InputFile(
                str(job.source), image.shape, image.axes, image.dtype, image.sha256, image.is_picture, image.spacing
            ),
            "output": OutputFile(str(job.target), *written),
            "environment": environment_of(self.place, dtype, started),
        }

    def rerun(self, source: Path, options: OptionValues, output: Path | str, output_dtype: str | None = None) -> str:
        """Write the command line that gives the same samples again, as a shell would read it.

        The options are those of the kernel and of this command.
        """
        values: OptionValues = {
            **options,
            **self.files.as_options(),
            "--device": self.device_type,
            "--output-dtype": output_dtype,
            "--output": str(output),
            "--force": True,
        }
        words = ["deconv", self.command]
        for name, value in values.items():
            if value is None or value is False:
                continue
            # One word, because a value may begin with a dash as options do.
            for one in value if isinstance(value, list) else [value]:
                words.append(name if one is True else f"{name}={one}")
        return shlex.join([*words, "--", str(source)])


def environment_of(device: torch.device, dtype: torch.dtype, started: float) -> Environment:
    """Describe what a result was computed with, up to now."""
    from deconv_cli.allocator import peak_memory_bytes
    from deconv_cli.report.run import Environment

    name = str(dtype).removeprefix("torch.")
    return Environment(str(device), name, peak_memory_bytes(), time.perf_counter() - started)


@dataclass(frozen=True)
class ExtraOutputs:
    """Files of `deconv invert` besides the estimate; `None` for options that were not given."""

    report: Annotated[
        Path | None,
        option(
            "--report FILE.html",
            "Write a page with the result, the choice of λ, and a map of where to trust the result.",
        ),
    ] = None
    truth: Annotated[
        Path | None,
        option(
            "--truth FILE",
            "The true image; deconv compares the estimate and the predicted error with it. Not in blocks.",
            ERROR,
        ),
    ] = None
    error_map: Annotated[
        Path | None, option("--error-map FILE", "Write the predicted error of every pixel.", ERROR)
    ] = None
    trust_mask: Annotated[
        Path | None,
        option(
            "--trust-mask FILE",
            "Write a mask: 255 where you can trust the result (the outside adds little to the error, and the error is "
            "below the contrast), 0 elsewhere.",
            ERROR,
        ),
    ] = None

    def need_prediction(self, settings: ReconstructionSettings) -> bool:
        """Return whether the error has to be predicted; a page or a truth does without it if it cannot be."""
        is_shown = self.report is not None or self.truth is not None
        return self.needs_map or (is_shown and settings.predicts)

    @property
    def needs_map(self) -> bool:
        """Whether a file is made of the predicted error."""
        return self.error_map is not None or self.trust_mask is not None

    def notes(self, settings: ReconstructionSettings) -> tuple[str, ...]:
        """Say why a page shows no expected error, if so."""
        if self.report is None or settings.predicts:
            return ()
        return (f"{settings.objective_name} predicts no error, so the page shows none",)

    @property
    def is_prediction_kept(self) -> bool:
        """Whether a rerun has to predict the error too; the page is not written again."""
        return self.truth is not None or self.needs_map

    @property
    def paths(self) -> list[Path]:
        """The files that will be written."""
        return [path for path in (self.error_map, self.trust_mask, self.report) if path is not None]

    def as_options(self) -> OptionValues:
        """List the options that a rerun gets."""
        return {"--truth": self.truth, "--error-map": self.error_map, "--trust-mask": self.trust_mask}

    def check(self, jobs: list[Job], *, force: bool) -> None:
        """Check that there is one input and that the files can be written, before anything is computed.

        Raises:
            UsageError: there are several inputs, or a file cannot hold its content.
            FileAccessError: no permission.
        """
        from deconv_cli.io.codec import codec_of_suffix

        named = {"--report": self.report, **self.as_options()}
        given = [option for option, path in named.items() if path is not None]
        if given and len(jobs) != 1:
            raise UsageError(f"{given[0]} is for one input, but there are {len(jobs)}; restore them one at a time.")
        if self.error_map is not None and codec_of_suffix(self.error_map).holds_whole_numbers_only:
            raise UsageError(
                f"--error-map writes fractions, which the format of '{self.error_map.name}' cannot hold; choose a "
                "name that ends in .tif, .npy, .pt or .safetensors."
            )
        if self.trust_mask is not None and not codec_of_suffix(self.trust_mask).is_lossless:
            raise UsageError(
                f"--trust-mask writes only 0 and 255, which the compression of '{self.trust_mask.name}' would blur; "
                "choose .png or .tif."
            )
        if self.report is not None:
            from deconv_cli.io.atomic import check_page_path

            check_page_path(self.report, jobs[0].source, force=force)

    def plan(self, image: ImageFile, n_channels: int, *, same_size: bool, force: bool) -> PlannedOutputs:
        """Read the truth, and check that the files can be written, before anything is computed.

        Raises:
            UsageError: a file exists already, or cannot hold its content.
            InputRefusedError: the truth cannot be read.
        """
        from deconv_cli.io import plan_output, read_image

        def planned(path: Path | None, n_channels: int, dtype: OutputDType) -> OutputPlan | None:
            if path is None:
                return None
            return plan_output(path, image, n_channels=n_channels, output_dtype=dtype, force=force, same_size=same_size)

        return PlannedOutputs(
            page=self.report,
            truth=None if self.truth is None else read_image(self.truth).spanned_by(image.dimensions).values,
            error_map=planned(self.error_map, n_channels, OutputDType.FLOAT32),
            trust_mask=planned(self.trust_mask, 1, OutputDType.UINT8),
        )


NO_EXTRAS = ExtraOutputs()


@dataclass(frozen=True, eq=False)
class PlannedOutputs:
    """The same files, known to be readable and writable."""

    page: Path | None
    truth: Tensor | None
    error_map: OutputPlan | None
    trust_mask: OutputPlan | None

    def write(self, run: InvertRun, record: dict[str, Any], values: Tensor) -> None:
        """Write the map and the mask, each with the record of the run, and the page."""
        result = run.reconstruction
        predicted = result.predicted_error
        # The record's entry on the output is about the estimate.
        record = {name: value for name, value in record.items() if name != "output"}
        if self.error_map is not None and predicted is not None:
            self.error_map.prepare(predicted.map.cpu()).write(record)
        if self.trust_mask is not None and predicted is not None:
            shape = (result.image.shape[0], 1, *predicted.trusted.shape)
            mask = (255.0 * predicted.trusted.float()).expand(shape).contiguous()
            self.trust_mask.prepare(mask.cpu()).write(record)
        if self.page is not None:
            from deconv_cli.io.atomic import write_page
            from deconv_cli.report.page import render_page

            write_page(self.page, render_page(run, values.to(result.image.dtype), self.truth))
