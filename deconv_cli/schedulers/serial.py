"""One piece of work after another, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Self

from deconv_cli.schedulers.scheduler import Finished, Result, Scheduler, persist
from deconv_cli.schedulers.work_settings import WorkSettings


class SerialScheduler(Scheduler):
    """Works in this process, in the order of the numbers."""

    n_workers = 1

    def __init__(self) -> None:
        import torch

        self.n_threads = torch.get_num_threads()

    @classmethod
    def covers(cls, settings: WorkSettings) -> bool:
        """Cover settings that ask for nobody else."""
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
