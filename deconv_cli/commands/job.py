"""One of many files: what is read, what is made of it, and what came of it."""

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
        make_folder: the target lies in an output folder, which is made where it is missing.
        number: which of many it is, from 1.
        n_jobs: how many there are.
        replaces: an output that is there may be replaced, whatever `--force` says, since a run before wrote it.
    """

    source: Path
    target: Path
    make_folder: bool = False
    number: int = 1
    n_jobs: int = 1
    replaces: bool = False

    @property
    def label(self) -> str:
        """Which of many it is, in words; empty for the only one."""
        return "" if self.n_jobs == 1 else f"file {self.number} of {self.n_jobs}"


@dataclass(frozen=True, eq=False)
class Source:
    """An input as it was read.

    Attributes:
        image: the file; a corner of it where it is large.
        large: what is known of one that is restored by parts, of which no more was read.
        seconds: that reading took.
    """

    image: ImageFile
    large: LargeInput | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What became of one job.

    Attributes:
        record: the report.
        print_summary: prints it as a table for people.
        doubts: why the result is not to be trusted, a sentence each; empty where it is.
        show: draws the result in the terminal.
        warnings: what may have gone wrong besides, a sentence each.
    """

    record: dict[str, Any]
    print_summary: Callable[[], None]
    doubts: tuple[str, ...]
    show: Callable[[], None]
    warnings: tuple[str, ...] = ()

    @property
    def is_trusted(self) -> bool:
        """Whether nothing speaks against the result."""
        return not self.doubts


Read: TypeAlias = Callable[[Job], Source | None]
"""Reads the input of a job; `None` where there is nothing to do."""

Finish: TypeAlias = Callable[[], Outcome]
"""Writes a result, and describes it."""

Process: TypeAlias = "Callable[[Job, Source, WorkProgress], Finish]"
"""Does the arithmetic for one input, maybe beside others in other threads; what it gives writes the result."""


class Work(ABC):
    """What a command does to each of its inputs, as it was typed: small, and can be sent to another process.

    Attributes:
        is_alone: it changes what all threads share, such as where print goes, so that nothing may go on beside it.
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
        """Give the bytes that inputs which are worked on at once may take together: half of what is free."""
        import torch

        from deconv_cli.solvers.solver import free_memory

        return free_memory(torch.device(self.device_type)) // 2

    def shared_by(self, n_workers: int) -> Work:
        """Give the same for workers that share the memory that may be used."""
        del n_workers
        return self

    def refuse_existing(self, job: Job) -> None:
        """Refuse a job whose output is there already, before it is given to a worker.

        Raises:
            DeconvError: it is, or cannot be written there.
        """
        from deconv_cli.io.codec import codec_of_suffix
        from deconv_cli.io.output import check_output_files

        codec = codec_of_suffix(job.target)
        check_output_files(job.target, codec, job.source, force=False, make_folder=job.make_folder)

    @abstractmethod
    def open(self) -> Process:
        """Prepare what all inputs share, such as the kernel.

        Raises:
            DeconvError: the kernel, the model or the factor cannot be had.
        """


@dataclass(frozen=True, eq=False)
class Done:
    """How one job ended: with an outcome, with an error, or without either where there was nothing to do.

    Attributes:
        job: which one.
        seconds: spent on reading, arithmetic and writing; not on waiting.
        outcome: what came of it.
        error: why nothing did.
    """

    job: Job
    seconds: float = 0.0
    outcome: Outcome | None = None
    error: Exception | None = None
