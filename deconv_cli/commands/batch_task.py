"""The jobs of a run as pieces of work for other processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from deconv_cli.commands.job import Done, Job, Process, Work
from deconv_cli.commands.parallel import one_by_one, without_images
from deconv_cli.commands.progress import WorkProgress
from deconv_cli.schedulers.scheduler import Finished, Scheduler


class BatchTask:
    """Does one job in whichever process it is called; what all jobs share is prepared there once.

    Args:
        work: what to do.
        jobs: to what.
    """

    def __init__(self, work: Work, jobs: Iterable[Job]) -> None:
        self._work = work
        self._jobs = {job.number: job for job in jobs}
        self._folder = Path.cwd()
        self._process: Process | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was prepared here."""
        return vars(self) | {"_process": None}

    def __call__(self, number: int) -> Done:
        """Read, work on and write the input of one job; gives how it ended without any image.

        Raises:
            Exception: whatever failed; the scheduler decides whether to try again.
        """
        with contextlib.chdir(self._folder):  # for a worker that was started elsewhere
            done = self._done(self._jobs[number])
        if done.error is not None:
            raise done.error
        return without_images(done)

    def _done(self, job: Job) -> Done:
        if self._process is None:
            self._process = self._work.open()
        progress = WorkProgress(is_silent=True)
        (done,) = one_by_one([job], lambda job: self._work.read(job.source), self._process, lambda _: progress)
        return done


def done_by(scheduler: Scheduler, work: Work, jobs: list[Job], begun: Iterator[Job]) -> Iterator[Done]:
    """Let the workers of a scheduler do jobs.

    Args:
        scheduler: has the workers.
        work: what to do.
        jobs: to what. Outputs that are there are replaced: a worker that died may have written one.
        begun: those that there is something to do for; the next is taken when a worker is about to have it.

    Yields:
        How each job ended, in any order.
    """
    by_number = {job.number: job for job in jobs}
    task = BatchTask(work, (replace(job, replaces=True) for job in jobs))
    for finished in scheduler.run(task, (job.number for job in begun)):
        yield _done(finished, by_number[finished.number])


def _done(finished: Finished[Done], job: Job) -> Done:
    return Done(job, error=finished.error) if finished.result is None else finished.result
