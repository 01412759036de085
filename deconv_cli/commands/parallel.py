"""Jobs that are done one by one, or several at once in threads that share the cores and the memory."""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from deconv_cli.commands.job import Done, Job, Process, Read, Source
from deconv_cli.commands.large_files import is_large
from deconv_cli.errors import as_too_large

if TYPE_CHECKING:
    from deconv_cli.commands.progress import WorkProgress

N_WAITING = 4
"""Jobs for each thread that are begun or about to be, and results that wait for an earlier one."""
N_ON_DEVICE = 2
"""Files that are on a GPU at once: one computes while the other is copied."""
ProgressOf: TypeAlias = "Callable[[Job], WorkProgress]"
AllDone: TypeAlias = Generator[Done, None, None]
_Lend: TypeAlias = "Callable[[Callable[[], Source | None]], AbstractContextManager[Source | None]]"


class SharedCores:
    """Lends each file its part of the cores: one core a file, as far as the memory allows.

    torch splits an operation among its threads, which then wait for one another. Two pictures of 512 × 512 take half as
    long with one thread each as one after the other with two threads. Reading, testing and writing need one thread
    anyway, so no core is idle. There is one file more than cores, since one of them mostly waits for the disk.

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
    def lent(self, read: Callable[[], Source | None]) -> Iterator[Source | None]:
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
        """Begin nothing more."""
        with self._room:
            self._is_closed = True
            self._room.notify_all()

    def is_closed(self) -> bool:
        """Return whether nothing more is to be begun."""
        return self._is_closed

    def _places_of(self, source: Source) -> int:
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

    Interrupted, it begins nothing more and waits for the jobs under way: their progress tells them to end.

    Args:
        jobs: what to do.
        read: called in any thread.
        process: called in any thread, and so is the function that it returns.
        progress_of: makes the listener of a job.
        cores: shared by the threads.

    Yields:
        How each job ended, in the order of the jobs and without images. An error is that of its own job.
    """
    pool = ThreadPoolExecutor(cores.n_places, "file")
    behind: deque[Future[Done]] = deque()
    try:
        for job in jobs:
            if is_large(job.source):
                yield from _drained(behind, 0)
                yield from map(without_images, one_by_one([job], read, process, progress_of))
            else:
                behind.append(pool.submit(_done_lightly, job, read, process, progress_of, cores.lent))
                yield from _drained(behind, N_WAITING * cores.n_places)
        yield from _drained(behind, 0)
    finally:
        cores.close()
        pool.shutdown(cancel_futures=True)


def without_images(done: Done) -> Done:
    """Drop what could print and show a result: it holds the images."""
    outcome = done.outcome
    return done if outcome is None else replace(done, outcome=replace(outcome, print_summary=_nothing, show=_nothing))


def _nothing() -> None:
    """Print nothing: the images are gone."""


def _done_lightly(job: Job, read: Read, process: Process, progress_of: ProgressOf, lend: _Lend) -> Done:
    return without_images(_done(job, read, process, progress_of, lend))


def _drained(behind: deque[Future[Done]], n_left: int) -> Iterator[Done]:
    """Yield finished jobs in order, and wait until at most `n_left` are under way."""
    while behind and (behind[0].done() or len(behind) > n_left):
        yield behind.popleft().result()


def _done(job: Job, read: Read, process: Process, progress_of: ProgressOf, lend: _Lend) -> Done:
    """Read a job, do its arithmetic and write its result; its time does not count the wait for room."""
    started = time.perf_counter()
    try:
        with lend(partial(_timed_read, read, job)) as source:
            if source is None:
                return Done(job)
            started = time.perf_counter() - source.seconds
            outcome = process(job, source, progress_of(job))()
    except Exception as error:  # noqa: BLE001  the others continue, and the caller decides what it means
        traceback.clear_frames(error.__traceback__)  # frees their images while an earlier job is waited for
        return Done(job, time.perf_counter() - started, error=as_too_large(error) or error)
    return Done(job, time.perf_counter() - started, outcome)


def _timed_read(read: Read, job: Job) -> Source | None:
    started = time.perf_counter()
    source = read(job)
    return None if source is None else replace(source, seconds=time.perf_counter() - started)
