"""The interface of all schedulers: call a task with each of many numbers, in any order, anywhere."""

from __future__ import annotations

import os
import pickle
import re
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

from deconv_cli.errors import DeconvError, UsageError, WorkerError
from deconv_cli.parts import SCHEDULERS
from deconv_cli.vocabulary import shortened


@dataclass(frozen=True)
class MachineShare:
    """The share of a worker in the machine: threads for its arithmetic, and maybe a GPU of its own."""

    n_threads: int
    has_gpu: bool = False

    @classmethod
    def of(cls, n_workers: int, device: str) -> MachineShare:
        """Divide the threads of torch and the GPUs of this machine.

        Raises:
            UsageError: the arithmetic runs on GPUs, and there are fewer GPUs than workers.
        """
        import torch

        n_threads = max(1, torch.get_num_threads() // n_workers)
        if device != "cuda":
            return cls(n_threads)
        n_gpus = torch.cuda.device_count()
        if n_workers > n_gpus:
            raise UsageError(
                f"each process needs its own GPU, but there are {n_workers} processes and {n_gpus} GPUs; start at "
                f'most {n_gpus}, or compute with device="cpu".'
            )
        return cls(n_threads, has_gpu=True)

    def take(self, place: int) -> None:
        """Limit the calling thread, and libraries that are loaded later, to the share of worker number `place`."""
        os.environ["OMP_NUM_THREADS"] = str(self.n_threads)
        if self.has_gpu:
            import torch

            torch.cuda.set_device(place)
        if "torch" in sys.modules:  # otherwise it reads the variable when it is loaded
            import torch

            torch.set_num_threads(self.n_threads)


@dataclass(frozen=True)
class WorkSettings:
    """Who does the work: processes of this machine or a running cluster; by default this process alone.

    Attributes:
        jobs: processes of this machine; 1 is this process.
        scheduler: address of a running cluster, such as `tcp://host:8786`, or the file with its address.
        threads: of this process, each with pieces of its own; 1 is this process as it is.
        device: type of the device of the arithmetic; each process of this machine has a GPU to itself.

    Raises:
        UsageError: more than one of the first three is given.
    """

    jobs: int | None = None
    scheduler: str | None = None
    threads: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        given = [name for name in ("jobs", "scheduler", "threads") if getattr(self, name) is not None]
        if len(given) > 1:
            named = " and ".join(f"{name}={getattr(self, name)}" for name in given)
            raise UsageError(f"{named} exclude one another; give one of them.")
        for name in ("jobs", "threads"):
            n = getattr(self, name)
            if n is not None and n < 1:
                raise UsageError(f"{name} must be a positive whole number, but is {n}.")


Result = TypeVar("Result")

RETRIES = 2
"""Further trials of a piece after its worker died, or after an error of a file or the network."""


@dataclass(frozen=True)
class Finished(Generic[Result]):
    """One piece of work that is done: its number, and either the result of the task or the error of its last trial."""

    number: int
    result: Result | None = None
    error: Exception | None = None

    @property
    def may_pass(self) -> bool:
        """Whether another trial may succeed, for example after a file server did not answer."""
        return isinstance(self.error, OSError | WorkerError)


class Scheduler(ABC):
    """Calls a task with one number after another; a context manager that ends its workers.

    A task can be sent to another process. It may be called again with the same number after a worker died, so it has to
    write the same each time. Its result is small: samples go to files.
    """

    n_workers: int
    """Tasks that run at once; 0 while a cluster has no workers yet."""
    n_sharing: int = 1
    """Workers that share the memory of this machine."""
    is_ending: bool = False
    """Whether pieces under way should end early, since the run was interrupted."""
    address: str | None = None
    """Where a person can watch the workers."""

    @classmethod
    @abstractmethod
    def covers(cls, settings: WorkSettings) -> bool:
        """Return whether these settings ask for this scheduler."""

    @classmethod
    @abstractmethod
    def open(cls, settings: WorkSettings) -> Self:
        """Start it as the settings say.

        Raises:
            UsageError: the machine lacks what the settings ask for, or a package is missing.
            WorkerError: there is no cluster at the address.
        """

    def memory_of_piece(self, given: int | None, free: int) -> int:
        """Return the bytes that one piece may take.

        Args:
            given: the limit for all workers of this machine together, or for each worker elsewhere; `None` for none.
            free: the bytes that may be used here if there is no limit.
        """
        return (free if given is None else given) // self.n_sharing

    @abstractmethod
    def run(self, task: Callable[[int], Result], numbers: Iterable[int]) -> Iterator[Finished[Result]]:
        """Yield each piece of work when it is done; only a few more pieces than workers are under way.

        An error of a task comes with its number, and the other pieces continue. Errors of files and of the network come
        after `RETRIES` further trials.

        Raises:
            WorkerError: no worker is left.
        """

    def close(self) -> None:  # noqa: B027
        """End the workers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


on_writing: Callable[[], None] | None = None
"""In a process of a pool: tells the owner that the piece begins to write its result."""


def announce_writing() -> None:
    """Announce that a piece begins to write its result, so that an interrupted run waits for it."""
    if on_writing is not None:
        on_writing()


def attempt(task: Callable[[int], Result], number: int) -> Finished[Result]:
    """Call a task once, and return its result or its error."""
    try:
        return Finished(number, task(number))
    except Exception as error:  # noqa: BLE001  the caller decides what a failure means
        return Finished(number, error=error)


def persist(task: Callable[[int], Result], number: int) -> Finished[Result]:
    """Call a task, and again if that may help; return the outcome of the last trial."""
    for _ in range(1 + RETRIES):
        finished = attempt(task, number)
        if not finished.may_pass:
            break
    return finished


def attempt_away(task: Callable[[int], Result], number: int) -> Finished[Result]:
    """Call a task once, and return an outcome that can be sent to another process."""
    finished = attempt(task, number)
    error = finished.error
    if error is not None and not isinstance(error, DeconvError):
        error.add_note("".join(traceback.format_exception(error)))  # which is not sent
    try:
        pickle.loads(pickle.dumps(finished))  # noqa: S301  an exception with arguments of its own may fail here
    except Exception as failure:  # noqa: BLE001  whatever the classes of the task raise
        cause = failure if error is None else error
        return Finished(number, error=RuntimeError(f"{type(cause).__name__}: {cause}"))
    return finished


def start_scheduler(settings: WorkSettings) -> Scheduler:
    """Start the scheduler that covers the settings; of several, the one that was registered last.

    Raises:
        UsageError: the machine lacks what the settings ask for, or a package is missing.
        WorkerError: there is no cluster at the address.
    """
    kinds: Iterator[type[Scheduler]] = (SCHEDULERS[name] for name in reversed(SCHEDULERS.names))
    return next(kind for kind in kinds if kind.covers(settings)).open(settings)


@dataclass(frozen=True)
class JobShare:
    """One of `n_jobs` jobs that each do their share of the same pieces of work; `job` counts from 1."""

    job: int
    n_jobs: int

    @classmethod
    def parse(cls, text: str) -> JobShare:
        """Read `i/N`; raise `UsageError` if it is something else, or i is not from 1 to N."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip(), re.ASCII)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(
                f"block_range must be i/N, for job i of N with i from 1 to N, but is '{shortened(text)}'; number the "
                "jobs of an array from 1."
            )
        return cls(int(found[1]), int(found[2]))

    def of(self, numbers: Sequence[int]) -> Sequence[int]:
        """Return the numbers of this job: neighbors, which read the same parts of a file, and about equally many."""
        first, end = ((job * len(numbers)) // self.n_jobs for job in (self.job - 1, self.job))
        return numbers[first:end]

    def __str__(self) -> str:
        return f"{self.job}/{self.n_jobs}"
