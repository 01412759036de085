"""Jobs done one by one, while the next are read and the last are written in threads of their own."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from deconv_cli.commands.job import Done, Finish, Job, Process, Read, Source
from deconv_cli.commands.large_files import is_large
from deconv_cli.commands.shared_cores import SharedCores

if TYPE_CHECKING:
    from deconv_cli.commands.progress import WorkProgress

N_AHEAD, N_BEHIND = 2, 2
"""Inputs that are read, and results that wait to be written, besides the one that is worked on."""
ProgressOf: TypeAlias = "Callable[[Job], WorkProgress]"
_Reading: TypeAlias = "tuple[Job, Callable[[], Source | None]]"


def one_by_one(jobs: list[Job], read: Read, process: Process, progress_of: ProgressOf) -> Iterator[Done]:
    """Read, work on and write each job before the next is read, all in this thread."""
    for job in jobs:
        finish = _processed(job, partial(_timed_read, read, job), process, progress_of)
        yield finish() if callable(finish) else finish


def overlapped(jobs: list[Job], read: Read, process: Process, progress_of: ProgressOf) -> Iterator[Done]:
    """Work on one job after another in this thread; the next are read and the last are written meanwhile.

    Where writing falls behind, this thread writes too.

    Args:
        jobs: what to do.
        read: called in a thread of its own.
        process: called in this thread; what it gives is called in any.
        progress_of: makes what is told of a job's progress.

    Yields:
        How each job ended, in the order of the jobs. An error is that of the job in which it happened.
    """
    n_writers = max(1, min(N_BEHIND, (os.cpu_count() or 1) - 1))
    cores = SharedCores(n_writers)
    reader = ThreadPoolExecutor(1, "read", SharedCores.take_one)
    writer = ThreadPoolExecutor(n_writers, "write", SharedCores.take_one)
    behind: deque[Future[Done]] = deque()
    try:
        for job, reading in _read_ahead(jobs, read, reader):
            is_alone = is_large(job.source)
            if is_alone:
                yield from _drained(behind, 0)
            with cores.shared():
                finish = _processed(job, reading, process, progress_of)
            if callable(finish) and not is_alone and sum(not one.done() for one in behind) < N_BEHIND:
                behind.append(writer.submit(cores.timed, finish))
            else:  # this thread would have to wait for room, and can as well lend a hand
                behind.append(Future())
                behind[-1].set_result(finish() if callable(finish) else finish)
            yield from _drained(behind, 0 if is_alone else N_BEHIND)
        yield from _drained(behind, 0)
    finally:
        reader.shutdown(cancel_futures=True)
        writer.shutdown()  # what was computed is written, even if the run was interrupted
        cores.give_back()


def _read_ahead(jobs: list[Job], read: Read, reader: ThreadPoolExecutor) -> Iterator[_Reading]:
    """Give each job with what reads it, or waits until it is read; a few are being read already, but no large one."""
    waiting, reading = deque(jobs), deque[_Reading]()
    while waiting or reading:
        while waiting and len(reading) <= N_AHEAD and not is_large(waiting[0].source):
            job = waiting.popleft()
            reading.append((job, reader.submit(_timed_read, read, job).result))
        if reading:
            yield reading.popleft()
        else:
            job = waiting.popleft()
            yield job, partial(_timed_read, read, job)


def _drained(behind: deque[Future[Done]], n_left: int) -> Iterator[Done]:
    """Give what is done, in order, and wait until no more than `n_left` are being written."""
    while behind and (behind[0].done() or len(behind) > n_left):
        yield behind.popleft().result()


def _timed_read(read: Read, job: Job) -> Source | None:
    started = time.perf_counter()
    source = read(job)
    return None if source is None else replace(source, seconds=time.perf_counter() - started)


def _processed(
    job: Job, read: Callable[[], Source | None], process: Process, progress_of: ProgressOf
) -> Done | Callable[[], Done]:
    """Do the arithmetic of a job; gives what writes its result, or how it ended before that."""
    started = time.perf_counter()
    try:
        source = read()
        if source is None:
            return Done(job)
        started = time.perf_counter() - source.seconds
        finish = process(job, source, progress_of(job))
    except Exception as error:  # noqa: BLE001  the others go on, and whoever counts them decides what it means
        return Done(job, time.perf_counter() - started, error=error)
    return partial(_finished, job, finish, time.perf_counter() - started)


def _finished(job: Job, finish: Finish, seconds: float) -> Done:
    started = time.perf_counter()
    try:
        outcome = finish()
    except Exception as error:  # noqa: BLE001  as above
        return Done(job, seconds + time.perf_counter() - started, error=error)
    return Done(job, seconds + time.perf_counter() - started, outcome)
