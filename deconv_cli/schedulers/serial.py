"""This process does the work itself: one piece after another, or several at once in its threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Self

from deconv_cli.schedulers.scheduler import Finished, Result, Scheduler, WorkSettings, persist


class SerialScheduler(Scheduler):
    """Works in this process, in the order of the numbers."""

    n_workers = 1

    def __init__(self) -> None:
        import torch

        self.n_threads = torch.get_num_threads()

    @classmethod
    def covers(cls, settings: WorkSettings) -> bool:
        """Cover settings that name no other workers."""
        nobody = settings.cluster is None and settings.scheduler is None
        return nobody and settings.jobs in (None, 1) and settings.threads in (None, 1)

    @classmethod
    def open(cls, settings: WorkSettings) -> Self:
        """Start nothing."""
        return cls()

    def run(self, task: Callable[[int], Result], numbers: Iterable[int]) -> Iterator[Finished[Result]]:
        """Call the task with one number after another."""
        for number in numbers:
            yield persist(task, number)


class ThreadPool(Scheduler):
    """Works in several threads of this process; for tasks that change nothing that they share.

    Args:
        n_workers: how many threads.
    """

    n_threads = 1

    def __init__(self, n_workers: int) -> None:
        self.n_workers = self.n_sharing = n_workers

    @classmethod
    def covers(cls, settings: WorkSettings) -> bool:
        """Cover several threads."""
        return settings.threads is not None and settings.threads > 1

    @classmethod
    def open(cls, settings: WorkSettings) -> Self:
        """Make a pool of so many threads."""
        assert settings.threads is not None
        return cls(settings.threads)

    def run(self, task: Callable[[int], Result], numbers: Iterable[int]) -> Iterator[Finished[Result]]:
        """Give each thread one number at a time."""
        left = iter(numbers)
        under_way: set[Future[Finished[Result]]] = set()
        done: set[Future[Finished[Result]]] = set()
        pool = ThreadPoolExecutor(self.n_workers)
        try:
            while True:
                under_way |= {
                    pool.submit(persist, task, number) for number in islice(left, self.n_workers - len(under_way))
                }
                yield from (future.result() for future in done)  # while the others work
                if not under_way:
                    return
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
        finally:
            pool.shutdown(cancel_futures=True)  # waits for pieces under way: a thread cannot be ended from outside
