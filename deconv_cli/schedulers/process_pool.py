"""Processes of this machine, each of which may die without the others.

`concurrent.futures` gives up all of its work when one process dies. Here each process has a pipe to itself: it is sent
one number at a time, and a pipe that ends says which piece was lost.
"""

from __future__ import annotations

import heapq
import multiprocessing
import pickle
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Self

from deconv_cli.allocator import keep_freed_memory
from deconv_cli.errors import WorkerError
from deconv_cli.schedulers.scheduler import (
    RETRIES,
    Finished,
    MachineShare,
    Result,
    Scheduler,
    WorkSettings,
    attempt_away,
)

SECONDS_TO_END = 5.0
"""How long a process that has nothing left to do may take to end."""


class ProcessPool(Scheduler):
    """Works in several processes of this machine, started when there is work for them.

    A piece whose process dies is given to another one, `RETRIES` times. Processes are spawned, so that a script that
    uses this has to be importable: what it does stands under `if __name__ == "__main__":`.

    Args:
        n_workers: how many processes.
        device: type of the device of the arithmetic.

    Raises:
        UsageError: there are not as many GPUs.
    """

    def __init__(self, n_workers: int, device: str = "cpu") -> None:
        self.n_workers = self.n_sharing = n_workers
        self._share = MachineShare.of(n_workers, device)
        self.n_threads = self._share.n_threads
        self._places = list(range(n_workers))
        self._idle: list[_Worker] = []

    @classmethod
    def covers(cls, settings: WorkSettings) -> bool:
        """Cover several jobs."""
        return settings.jobs is not None and settings.jobs > 1

    @classmethod
    def open(cls, settings: WorkSettings) -> Self:
        """Make a pool of so many jobs."""
        assert settings.jobs is not None
        return cls(settings.jobs, settings.device)

    def run(self, task: Callable[[int], Result], numbers: Iterable[int]) -> Iterator[Finished[Result]]:
        """Give each process one number at a time."""
        pickled = pickle.dumps(task)
        left, again = iter(numbers), deque[int]()
        n_trials: Counter[int] = Counter()
        busy: dict[Connection, _Worker] = {}
        finished: list[Finished[Result]] = []
        try:
            while True:
                while len(busy) < self.n_workers:
                    number = again.popleft() if again else next(left, None)
                    if number is None:
                        break
                    worker = self._free_worker()
                    busy[worker.pipe] = worker
                    worker.begin(pickled, number)
                yield from finished  # while the others work
                if not busy:
                    return
                finished = []
                for ended in self._ended(busy):
                    n_trials[ended.number] += 1
                    if ended.may_pass and n_trials[ended.number] <= RETRIES:
                        again.append(ended.number)
                    else:
                        finished.append(ended)
        finally:
            for worker in busy.values():  # interrupted, so that nobody waits for the pieces under way
                self._drop(worker)

    def close(self) -> None:
        """End all processes."""
        for worker in self._idle:
            worker.pipe.close()
        for worker in self._idle:
            worker.process.join(SECONDS_TO_END)
            self._drop(worker)
        self._idle.clear()

    def _free_worker(self) -> _Worker:
        """Take a process that has nothing to do, or start one."""
        return self._idle.pop() if self._idle else _Worker(heapq.heappop(self._places), self._share)

    def _ended(self, busy: dict[Connection, _Worker]) -> Iterator[Finished[Any]]:
        """Wait for pieces under way that are done, or whose process died."""
        for pipe in wait(list(busy)):
            worker = busy.pop(pipe)  # type: ignore[call-overload]  # typeshed allows file numbers too
            ended = worker.end()
            if worker.is_lost:
                self._drop(worker)
            else:
                self._idle.append(worker)
            yield ended

    def _drop(self, worker: _Worker) -> None:
        worker.kill()
        heapq.heappush(self._places, worker.place)


class _Worker:
    """One process, as its owner sees it.

    Attributes:
        place: which of the pool's workers it is.
        pipe: to it.
        process: itself.
        is_lost: whether it died.
    """

    def __init__(self, place: int, share: MachineShare) -> None:
        context = multiprocessing.get_context("spawn")
        self.place = place
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, share, place), daemon=True)
        self.process.start()
        theirs.close()
        self.is_lost = False
        self._task: bytes | None = None
        self._number = 0

    def begin(self, task: bytes, number: int) -> None:
        """Send the process a number, and before its first one the task."""
        self._number = number
        try:
            if task is not self._task:
                self.pipe.send_bytes(task)
            self.pipe.send(number)
        except OSError:
            return  # it died; reading from it tells
        self._task = task

    def end(self) -> Finished[Any]:
        """Give what the process sent, or that it died.

        Raises:
            WorkerError: it gave up by itself, as it does where it cannot start.
        """
        try:
            finished: Finished[Any] = self.pipe.recv()
            return finished
        except (EOFError, OSError):
            self.is_lost = True
        self.process.join(SECONDS_TO_END)
        code = self.process.exitcode or 0
        if code > 0:
            raise WorkerError(
                f"a process that was started to do the work ended with exit code {code}; it printed why. A script that "
                'starts processes has to do so under if __name__ == "__main__":.'
            )
        return Finished(
            self._number,
            error=WorkerError(
                f"the process that did piece {self._number} was ended by signal {-code}, {1 + RETRIES} times; the "
                "system does that where memory is short: give fewer jobs, or a smaller max_memory."
            ),
        )

    def kill(self) -> None:
        """End the process, whatever it does."""
        self.pipe.close()
        self.process.kill()
        self.process.join()
        self.process.close()


def _serve(pipe: Connection, share: MachineShare, place: int) -> None:
    """Do one piece after another, until the pipe is closed; runs in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    with suppress(EOFError, ConnectionError):
        pickled = pipe.recv_bytes()  # before torch is loaded, which takes long: the sender waits
        keep_freed_memory()
        share.take(place)
        task = pickle.loads(pickled)  # noqa: S301  from the process that started this one
        while True:
            message = pipe.recv()
            if isinstance(message, int):
                pipe.send(attempt_away(task, message))
            else:
                task = message
