"""Jobs done one by one, or several at once so that none waits while another is read or written."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from deconv_cli.commands.job import Done, Job, Process, Read, Source
from deconv_cli.commands.large_files import is_large
from deconv_cli.commands.shared_cores import SharedCores
from deconv_cli.errors import as_too_large

if TYPE_CHECKING:
    from deconv_cli.commands.progress import WorkProgress

N_WAITING = 4
"""Jobs for each thread that have been begun or are about to be, and results that wait for an earlier one."""
ProgressOf: TypeAlias = "Callable[[Job], WorkProgress]"
AllDone: TypeAlias = Generator[Done, None, None]
_Lend: TypeAlias = "Callable[[Callable[[], Source | None]], AbstractContextManager[Source | None]]"


def one_by_one(jobs: list[Job], read: Read, process: Process, progress_of: ProgressOf) -> AllDone:
    """Read, work on and write each job before the next is read, all in this thread."""
    for job in jobs:
        yield _done(job, read, process, progress_of, lambda read: nullcontext(read()))


def side_by_side(jobs: list[Job], read: Read, process: Process, progress_of: ProgressOf, cores: SharedCores) -> AllDone:
    """Read, work on and write several jobs at once, each in a thread; a large one by itself, in this thread.

    Interrupted, it begins nothing more, and waits for those that are under way: their progress tells them to end.

    Args:
        jobs: what to do.
        read: called in any thread.
        process: called in any thread, as is what it gives.
        progress_of: makes what is told of a job's progress.
        cores: what the threads share.

    Yields:
        How each job ended, in the order of the jobs and without images. An error is that of the job in which it
        happened.
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
    """Give how a job ended without what could print and show it, which holds its images."""
    outcome = done.outcome
    return done if outcome is None else replace(done, outcome=replace(outcome, print_summary=_nothing, show=_nothing))


def _nothing() -> None:
    """Print nothing: the images are gone."""


def _drained(behind: deque[Future[Done]], n_left: int) -> Iterator[Done]:
    """Give what is done, in order, and wait until no more than `n_left` are under way."""
    while behind and (behind[0].done() or len(behind) > n_left):
        yield behind.popleft().result()


def _done_lightly(job: Job, read: Read, process: Process, progress_of: ProgressOf, lend: _Lend) -> Done:
    return without_images(_done(job, read, process, progress_of, lend))


def _done(job: Job, read: Read, process: Process, progress_of: ProgressOf, lend: _Lend) -> Done:
    """Read a job, do its arithmetic and write its result; the time that it takes is told without waiting for room."""
    started = time.perf_counter()
    try:
        with lend(partial(_timed_read, read, job)) as source:
            if source is None:
                return Done(job)
            started = time.perf_counter() - source.seconds
            outcome = process(job, source, progress_of(job))()
    except Exception as error:  # noqa: BLE001  the others go on, and whoever counts them decides what it means
        traceback.clear_frames(error.__traceback__)  # of their images, while an earlier job is waited for
        return Done(job, time.perf_counter() - started, error=as_too_large(error) or error)
    return Done(job, time.perf_counter() - started, outcome)


def _timed_read(read: Read, job: Job) -> Source | None:
    started = time.perf_counter()
    source = read(job)
    return None if source is None else replace(source, seconds=time.perf_counter() - started)
