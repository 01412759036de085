"""One piece of work after another, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from deconv_cli.schedulers.scheduler import Finished, Result, Scheduler


class SerialScheduler(Scheduler):
    """Works in this process, in the order of the numbers."""

    n_workers = 1

    def run(self, task: Callable[[int], Result], numbers: Iterable[int]) -> Iterator[Finished[Result]]:
        """Call the task with one number after another."""
        for number in numbers:
            try:
                result = task(number)
            except Exception as error:  # noqa: BLE001  the caller decides what a failure means
                yield Finished(number, error=error)
            else:
                yield Finished(number, result)
