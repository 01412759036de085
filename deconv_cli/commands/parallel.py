"""Jobs: one input each, done one by one, or several at once in threads that share the cores and the memory."""

from __future__ import annotations

import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from deconv_cli.errors import as_too_large

if TYPE_CHECKING:
    from deconv_cli.blocks.block_problem import BlockProblem
    from deconv_cli.commands.loaded_kernel import LoadedKernel
    from deconv_cli.commands.progress import WorkProgress
    from deconv_cli.io import ImageFile
    from deconv_cli.io.region_arrays import RegionSource


LARGE_FILE_BYTES = 64 * 2**20
"""Inputs from this size on are restored one by one, so that only one is in memory at a time."""


N_WAITING = 4
"""Jobs for each thread that are begun or about to be, and results that wait for an earlier one."""
N_ON_DEVICE = 2
"""Files that are on a GPU at once: one computes while the other is copied."""


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
class LargeInput:
    """An input of which only a corner was read, its kernel, and notes on the settings, a sentence each."""

    source: RegionSource
    corner: ImageFile
    loaded: LoadedKernel
    problem: BlockProblem
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class LoadedFile:
    """An input and the seconds that reading took; of a large input, which is restored by parts, a corner."""

    image: ImageFile
    large: LargeInput | None = None
    seconds: float = 0.0

    def started(self) -> float:
        """Return when reading would have begun if the work had not had to wait, in the performance counter's time."""
        return time.perf_counter() - self.seconds


def _nothing() -> None:
    """Print nothing: there is no result, or its images are gone."""


@dataclass(frozen=True, eq=False)
class JobResult:
    """The end of one job: with a record, with an error, or with neither if there was nothing to do.

    Attributes:
        job: the job.
        record: the report.
        print_summary: prints it as a table for people.
        doubts: reasons not to trust the result, a sentence each; empty if it is trusted.
        warnings: other warnings, a sentence each.
        error: the reason why there is no result.
        seconds: time of reading, arithmetic and writing, without waiting.
        is_partial: whether other jobs have to complete the output.
    """

    job: Job
    record: dict[str, Any] | None = None
    print_summary: Callable[[], None] = _nothing
    doubts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    error: Exception | None = None
    seconds: float = 0.0
    is_partial: bool = False


Read: TypeAlias = Callable[[Job], LoadedFile | None]
"""Reads the input of a job; `None` if there is nothing to do."""

Process: TypeAlias = "Callable[[Job, LoadedFile, WorkProgress], JobResult]"
"""Does the arithmetic for one input and writes the result, in any thread."""

ProgressOf: TypeAlias = "Callable[[Job], WorkProgress]"
AllDone: TypeAlias = Generator[JobResult, None, None]
_Lend: TypeAlias = "Callable[[Callable[[], LoadedFile | None]], AbstractContextManager[LoadedFile | None]]"


class Work(ABC):
    """The work of a command on each of its inputs; small, so that it can be sent to another process.

    Attributes:
        is_alone: whether it changes something that all threads share, such as the standard output.
    """

    is_alone: bool = False

    @abstractmethod
    def read(self, path: Path) -> LoadedFile:
        """Read an input."""

    @property
    @abstractmethod
    def device_type(self) -> str:
        """The type of the device of the arithmetic: `cpu`, `cuda`, ..."""

    def memory(self) -> int:
        """Return the memory in bytes that all inputs in work may take together: half of the free memory."""
        import torch

        from deconv_cli.operators.synchronize import free_memory

        return free_memory(torch.device(self.device_type)) // 2

    def shared_by(self, n_workers: int) -> Work:
        """Return the same work for several workers that share the memory."""
        del n_workers
        return self

    def refuse_existing(self, job: Job) -> None:
        """Refuse, by `DeconvError`, a job whose output exists, before it is given to a worker."""
        from deconv_cli.io.codec import codec_of_suffix
        from deconv_cli.io.output import check_output_files

        codec = codec_of_suffix(job.target)
        check_output_files(job.target, codec, job.source, force=False, make_folder=job.make_folder)

    @abstractmethod
    def open(self) -> Process:
        """Prepare what all inputs share, such as the kernel; a file that cannot be read is a `DeconvError`."""


def is_large(path: Path) -> bool:
    """Return whether an input is large: a file by its size; a folder of chunks counts as large."""
    try:
        return path.is_dir() or path.stat().st_size >= LARGE_FILE_BYTES
    except OSError:
        return False


class SharedCores:
    """Lends each file its part of the cores: one core a file, as far as the memory allows.

    Two pictures of 512 × 512 with a thread each take half the time that they take one by one with two threads.
    There is one file more than cores, since one of them mostly waits for the disk.

    Args:
        n_files: number of files.
        n_bytes: that all of them may take together.
        device: type of the device of the arithmetic.

    Attributes:
        n_places: files that are worked on at once, if they are small.
    """

    def __init__(self, n_files: int, n_bytes: int, device: str = "cpu") -> None:
        import torch

        self._n_cores = torch.get_num_threads()
        self.n_places = min(n_files, 1 + (self._n_cores if device == "cpu" else N_ON_DEVICE))
        self._n_bytes = n_bytes
        self._n_free = self.n_places
        self._turn, self._room = threading.Lock(), threading.Condition()
        self._is_closed = False

    @contextmanager
    def lent(self, read: Callable[[], LoadedFile | None]) -> Iterator[LoadedFile | None]:
        """Read a file, wait until there is room for it, and lend it its cores while the block runs.

        Files are read one at a time, so at most one waits for room.

        Raises:
            KeyboardInterrupt: nothing more is to be begun.
        """
        import torch

        with self._turn:
            source = read()
            n_places = 0 if source is None else self._places_of(source)
            with self._room:
                self._room.wait_for(lambda: self._n_free >= n_places or self._is_closed)
                if self._is_closed:
                    raise KeyboardInterrupt
                self._n_free -= n_places
        try:
            n_at_once = self.n_places // max(1, n_places)
            torch.get_num_threads()  # a thread that is new to torch otherwise gets the number that was last set by any
            torch.set_num_threads(max(1, self._n_cores // n_at_once))
            yield source
        finally:
            torch.set_num_threads(self._n_cores)  # also of threads that are new to torch later
            with self._room:
                self._n_free += n_places
                self._room.notify_all()

    def close(self) -> None:
        """Start no more jobs."""
        with self._room:
            self._is_closed = True
            self._room.notify_all()

    def is_closed(self) -> bool:
        """Return whether nothing more is to be begun."""
        return self._is_closed

    def _places_of(self, source: LoadedFile) -> int:
        """Return the places that a file takes; all of them if it is restored in blocks, by threads of their own."""
        from deconv_cli.blocks.block_problem import MAX_BYTES_A_SAMPLE

        if source.large is not None:
            return self.n_places
        n_fit = self._n_bytes // (MAX_BYTES_A_SAMPLE * max(1, source.image.values.numel()))
        return -(-self.n_places // n_fit) if n_fit else self.n_places


def one_by_one(jobs: list[Job], read: Read, process: Process, progress_of: ProgressOf) -> AllDone:
    """Read, work on and write each job before the next is read, all in this thread."""
    for job in jobs:
        yield _done(job, read, process, progress_of, lambda read: nullcontext(read()))


def side_by_side(jobs: list[Job], read: Read, process: Process, progress_of: ProgressOf, cores: SharedCores) -> AllDone:
    """Read, work on and write several jobs at once, each in a thread; a large one alone, in this thread.

    Interrupted, it begins nothing more, waits for the jobs under way, which their progress tells to end, and yields
    those that were finished.

    Args:
        jobs: what to do.
        read: called in any thread.
        process: called in any thread.
        progress_of: makes the listener of a job.
        cores: shared by the threads.

    Yields:
        How each job ended, in the order of the jobs and without images. An error is that of its own job.
    """
    pool = ThreadPoolExecutor(cores.n_places, "file")
    behind: deque[Future[JobResult]] = deque()
    try:
        for job in jobs:
            if is_large(job.source):
                yield from _drained(behind, 0)
                yield from map(without_images, one_by_one([job], read, process, progress_of))
            else:
                behind.append(pool.submit(_done_lightly, job, read, process, progress_of, cores.lent))
                yield from _drained(behind, N_WAITING * cores.n_places)
        yield from _drained(behind, 0)
    except KeyboardInterrupt:
        cores.close()
        pool.shutdown(cancel_futures=True)
        yield from (one.result() for one in behind if not one.cancelled() and one.exception() is None)
        raise
    finally:
        cores.close()
        pool.shutdown(cancel_futures=True)


def without_images(done: JobResult) -> JobResult:
    """Drop what could print a result: it holds the images."""
    return replace(done, print_summary=_nothing)


def _done_lightly(job: Job, read: Read, process: Process, progress_of: ProgressOf, lend: _Lend) -> JobResult:
    return without_images(_done(job, read, process, progress_of, lend))


def _drained(behind: deque[Future[JobResult]], n_left: int) -> Iterator[JobResult]:
    """Yield finished jobs in order, and wait until at most `n_left` are under way."""
    while behind and (behind[0].done() or len(behind) > n_left):
        yield behind.popleft().result()


def _done(job: Job, read: Read, process: Process, progress_of: ProgressOf, lend: _Lend) -> JobResult:
    """Read a job, do its arithmetic and write its result; its time does not count the wait for room."""
    started = time.perf_counter()
    try:
        with lend(partial(_timed_read, read, job)) as source:
            if source is None:
                return JobResult(job)
            started = source.started()
            done = process(job, source, progress_of(job))
    except Exception as error:  # noqa: BLE001  the others continue, and the caller decides what it means
        traceback.clear_frames(error.__traceback__)  # frees their images while an earlier job is waited for
        return JobResult(job, error=as_too_large(error) or error, seconds=time.perf_counter() - started)
    return replace(done, seconds=time.perf_counter() - started)


def _timed_read(read: Read, job: Job) -> LoadedFile | None:
    started = time.perf_counter()
    source = read(job)
    return None if source is None else replace(source, seconds=time.perf_counter() - started)
