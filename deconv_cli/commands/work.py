"""The work of a command on each input file: the job, what was read for it, its result, and the line that repeats it."""

from __future__ import annotations

import shlex
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

from deconv_cli.commands.option_groups import FileOptions, OptionValues, given_options
from deconv_cli.vocabulary import DeviceChoice, OutputDType

if TYPE_CHECKING:
    import torch

    from deconv_cli.blocks.block_problem import BlockProblem
    from deconv_cli.commands.kernel_request import KernelRequest
    from deconv_cli.commands.loaded_kernel import LoadedKernel
    from deconv_cli.commands.progress import WorkProgress
    from deconv_cli.io import ImageFile, OutputPlan, PreparedOutput
    from deconv_cli.report.run import Environment

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

    corner: ImageFile
    loaded: LoadedKernel
    problem: BlockProblem
    notes: tuple[str, ...]


def print_nothing() -> None:
    """Print nothing: the images of the result are gone."""


@dataclass(frozen=True, eq=False)
class JobResult:
    """The result of one job.

    Attributes:
        record: the report.
        print_summary: prints it as a table for people.
        is_partial: whether other jobs have to complete the output.
        seconds: time of reading, arithmetic and writing.
    """

    record: dict[str, Any]
    print_summary: Callable[[], None] = print_nothing
    is_partial: bool = False
    seconds: float = 0.0

    @property
    def doubts(self) -> list[str]:
        """Reasons not to trust the result, a sentence each; empty if it is trusted."""
        return [doubt if isinstance(doubt, str) else doubt["sentence"] for doubt in self.record.get("doubts", ())]


Source: TypeAlias = "ImageFile | LargeInput"
"""An input as read."""
Process: TypeAlias = "Callable[[Job, Source, WorkProgress], JobResult]"
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
    kernel: KernelRequest
    device: DeviceChoice

    @property
    def is_alone(self) -> bool:
        """Whether it changes something that all threads share, such as the standard output."""
        return False

    def read(self, job: Job) -> Source:
        """Read an input."""
        return self.files.read(job.source)

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
        return replace(self, files=replace(self.files, force=True), kernel=replace(self.kernel))

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
        self, job: Job, image: ImageFile, n_channels: int, *, output_dtype: OutputDType | None = None
    ) -> OutputPlan:
        """Check that the output can be written, before anything is computed."""
        from deconv_cli.io import plan_output

        return plan_output(
            job.target,
            image,
            n_channels=n_channels,
            output_dtype=output_dtype or self.files.output_dtype,
            force=self.files.force,
            make_folder=job.make_folder,
        )

    def describe(
        self, job: Job, image: ImageFile, prepared: PreparedOutput, dtype: torch.dtype, started: float
    ) -> dict[str, Any]:
        """Describe the input, the output, and what a result was computed with, up to now."""
        from deconv_cli.report.run import InputFile, OutputFile

        written = (prepared.image.shape, prepared.image.axes, prepared.dtype, prepared.samples_sha256)
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
            **given_options(replace(self.files, output_dtype=None)),
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
