"""One of many files: its input, the work on it, and its result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from deconv_cli.commands.large_files import LargeInput
    from deconv_cli.commands.progress import WorkProgress
    from deconv_cli.io import ImageFile


@dataclass(frozen=True)
class Job:
    """One input and the place of its output.

    Attributes:
        source: the input file.
        target: the output file.
        make_folder: whether the target's folder is made if it is missing.
        number: its number among all jobs, from 1.
        n_jobs: the number of jobs.
        replaces: whether an existing output may be replaced without `--force`, since an earlier run wrote it.
    """

    source: Path
    target: Path
    make_folder: bool = False
    number: int = 1
    n_jobs: int = 1
    replaces: bool = False

    @property
    def label(self) -> str:
        """Its number in words; empty for the only job."""
        return "" if self.n_jobs == 1 else f"file {self.number} of {self.n_jobs}"


@dataclass(frozen=True, eq=False)
class Source:
    """An input as it was read.

    Attributes:
        image: the file; only a corner of a large one.
        large: the header of an input that is restored by parts.
        seconds: time that reading took.
    """

    image: ImageFile
    large: LargeInput | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """The result of one job.

    Attributes:
        record: the report.
        print_summary: prints it as a table for people.
        doubts: reasons not to trust the result, a sentence each; empty if it is trusted.
        show: draws the result in the terminal.
        warnings: other warnings, a sentence each.
    """

    record: dict[str, Any]
    print_summary: Callable[[], None]
    doubts: tuple[str, ...]
    show: Callable[[], None]
    warnings: tuple[str, ...] = ()

    @property
    def is_trusted(self) -> bool:
        """Whether there is no doubt."""
        return not self.doubts


Read: TypeAlias = Callable[[Job], Source | None]
"""Reads the input of a job; `None` if there is nothing to do."""

Finish: TypeAlias = Callable[[], Outcome]
"""Writes a result, and describes it."""

Process: TypeAlias = "Callable[[Job, Source, WorkProgress], Finish]"
"""Does the arithmetic for one input, in any thread; returns a function that writes the result."""


class Work(ABC):
    """The work of a command on each of its inputs; small, so that it can be sent to another process.

    Attributes:
        is_alone: whether it changes something that all threads share, such as the standard output.
    """

    is_alone: bool = False

    @abstractmethod
    def read(self, path: Path) -> Source:
        """Read an input."""

    @property
    @abstractmethod
    def device_type(self) -> str:
        """Where the arithmetic is: `cpu`, `cuda`, ..."""

    def memory(self) -> int:
        """Return the memory in bytes that all inputs in work may take together: half of the free memory."""
        import torch

        from deconv_cli.solvers.solver import free_memory

        return free_memory(torch.device(self.device_type)) // 2

    def shared_by(self, n_workers: int) -> Work:
        """Return the same work for several workers that share the memory."""
        del n_workers
        return self

    def refuse_existing(self, job: Job) -> None:
        """Refuse a job whose output exists, before it is given to a worker.

        Raises:
            DeconvError: it exists, or cannot be written there.
        """
        from deconv_cli.io.codec import codec_of_suffix
        from deconv_cli.io.output import check_output_files

        codec = codec_of_suffix(job.target)
        check_output_files(job.target, codec, job.source, force=False, make_folder=job.make_folder)

    @abstractmethod
    def open(self) -> Process:
        """Prepare what all inputs share, such as the kernel.

        Raises:
            DeconvError: the kernel, the model or the factor cannot be read.
        """


@dataclass(frozen=True, eq=False)
class Done:
    """The end of one job: with an outcome, with an error, or with neither if there was nothing to do.

    Attributes:
        job: the job.
        seconds: time of reading, arithmetic and writing, without waiting.
        outcome: the result.
        error: the reason why there is none.
    """

    job: Job
    seconds: float = 0.0
    outcome: Outcome | None = None
    error: Exception | None = None
