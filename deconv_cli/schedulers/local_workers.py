"""Workers of this machine: this process alone, several of its threads, or several processes.

`concurrent.futures` gives up all of its work when one process dies, and does not say which piece was lost. Here each
process has a pipe to itself: it is sent one number at a time, and a pipe that ends names its piece.
"""

from __future__ import annotations

import heapq
import multiprocessing
import pickle
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_threads
from contextlib import suppress
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any, Self

from deconv_cli.allocator import keep_freed_memory, load_torch
from deconv_cli.errors import WorkerError
from deconv_cli.schedulers import scheduler
from deconv_cli.schedulers.scheduler import (
    RETRIES,
    Finished,
    MachineShare,
    Result,
    Scheduler,
    WorkSettings,
    attempt_away,
    persist,
)

MAX_BUSY = 60 if sys.platform == "win32" else 4096
"""Processes that are waited for at once: Windows waits for 63 at most."""
CRASHED = 0xC0000000
"""Exit codes of processes that crashed on Windows begin here; elsewhere they are negative."""
SECONDS_TO_END = 5.0
"""How long a process that has nothing left to do may take to end."""


class SerialScheduler(Scheduler):
    """Works in this process, in the order of the numbers."""

    n_workers = 1

    @classmethod
    def covers(cls, settings: WorkSettings) -> bool:
        """Cover settings that name no other workers."""
        return settings.scheduler is None and settings.jobs in (None, 1) and settings.threads in (None, 1)

    @classmethod
    def open(cls, settings: WorkSettings) -> Self:
        """Start nothing."""
        return cls()

    def run(self, task: Callable[[int], Result], numbers: Iterable[int]) -> Iterator[Finished[Result]]:
        """Call the task with one number after another."""
        for number in numbers:
            yield persist(task, number)


class ThreadPool(Scheduler):
    """Works in several threads of this process; the task must not change anything that they share."""

    def __init__(self, n_workers: int) -> None:
        self.n_workers = self.n_sharing = n_workers
        self._n_threads = MachineShare.of(n_workers, "cpu").n_threads

    @classmethod
    def covers(cls, settings: WorkSettings) -> bool:
        """Cover several threads."""
        return settings.threads is not None and settings.threads > 1

    @classmethod
    def open(cls, settings: WorkSettings) -> Self:
        """Make a pool of as many threads as the settings say."""
        assert settings.threads is not None
        return cls(settings.threads)

    def run(self, task: Callable[[int], Result], numbers: Iterable[int]) -> Iterator[Finished[Result]]:
        """Give each thread its part of the cores, and one number at a time.

        Interrupted, it waits for the pieces under way, and yields those that were finished.
        """
        import torch

        n_cores, self.is_ending = torch.get_num_threads(), False
        left = iter(numbers)
        under_way: set[Future[Finished[Result]]] = set()
        done: set[Future[Finished[Result]]] = set()
        pool = ThreadPoolExecutor(self.n_workers, initializer=_take_cores, initargs=(self._n_threads,))
        try:
            while True:
                more = islice(left, self.n_workers - len(under_way))
                under_way |= {pool.submit(persist, task, number) for number in more}
                while done:
                    yield done.pop().result()  # while the others work
                if not under_way:
                    return
                done, under_way = wait_for_threads(under_way, return_when=FIRST_COMPLETED)
        except KeyboardInterrupt:
            self._end(pool)
            yield from (one.result() for one in done | under_way if not one.cancelled() and one.exception() is None)
            raise
        finally:
            self._end(pool)
            torch.set_num_threads(n_cores)  # also of threads that are new to torch later

    def _end(self, pool: ThreadPoolExecutor) -> None:
        """Begin nothing more, and wait for the pieces under way: a thread cannot be ended from outside."""
        self.is_ending = True
        pool.shutdown(cancel_futures=True)


def _take_cores(n_threads: int) -> None:
    import torch

    torch.get_num_threads()  # a thread that is new to torch otherwise gets the number that was last set by any
    torch.set_num_threads(n_threads)


class ProcessPool(Scheduler):
    """Works in several processes of this machine, which start when there is work for them.

    If a process dies, its piece is given to another one, `RETRIES` times. Processes are spawned, so a script that uses
    this has to be importable: put its work under `if __name__ == "__main__":`.

    Raises:
        UsageError: there are fewer GPUs than processes.
    """

    def __init__(self, n_workers: int, device: str = "cpu") -> None:
        self.n_workers = self.n_sharing = n_workers
        self._share = MachineShare.of(n_workers, device)
        self._places = list(range(n_workers))
        self._idle: list[_Worker] = []

    @classmethod
    def covers(cls, settings: WorkSettings) -> bool:
        """Cover several jobs."""
        return settings.jobs is not None and settings.jobs > 1

    @classmethod
    def open(cls, settings: WorkSettings) -> Self:
        """Make a pool of as many processes as the settings say."""
        assert settings.jobs is not None
        return cls(settings.jobs, settings.device)

    def run(self, task: Callable[[int], Result], numbers: Iterable[int]) -> Iterator[Finished[Result]]:
        """Give each process one number at a time.

        Interrupted, it waits for the pieces that are being written, and yields those that were finished.
        """
        pickled = pickle.dumps(task)
        left, again = iter(numbers), deque[int]()
        n_trials: Counter[int] = Counter()
        busy: dict[Connection, _Worker] = {}
        finished = deque[Finished[Result]]()
        try:
            while True:
                while len(busy) < min(self.n_workers, MAX_BUSY):
                    number = again.popleft() if again else next(left, None)
                    if number is None:
                        break
                    worker = self._idle.pop() if self._idle else _Worker(heapq.heappop(self._places), self._share)
                    busy[worker.pipe] = worker
                    worker.begin(pickled, number)
                while finished:  # the others work meanwhile
                    yield finished.popleft()
                if not busy:
                    return
                for pipe in wait(list(busy)):
                    worker = busy[pipe]  # type: ignore[index]  # typeshed allows file numbers too
                    ended = worker.end()
                    if ended is None:
                        continue
                    del busy[worker.pipe]
                    if worker.is_lost:
                        self._drop(worker)
                    else:
                        self._idle.append(worker)
                    n_trials[ended.number] += 1
                    if ended.may_pass and n_trials[ended.number] <= RETRIES:
                        again.append(ended.number)
                    else:
                        finished.append(ended)
        except KeyboardInterrupt:
            while finished:
                yield finished.popleft()
            for worker in busy.values():
                with suppress(WorkerError):
                    while worker.is_writing or (not worker.is_lost and worker.pipe.poll()):
                        if (last := worker.end()) is not None and not worker.is_lost:
                            yield last
            raise
        finally:
            for worker in busy.values():  # interrupted, so nobody waits for the other pieces under way
                self._drop(worker)

    def close(self) -> None:
        """End all processes."""
        for worker in self._idle:
            worker.pipe.close()
        for worker in self._idle:
            worker.process.join(SECONDS_TO_END)
            self._drop(worker)
        self._idle.clear()

    def _drop(self, worker: _Worker) -> None:
        worker.kill()
        heapq.heappush(self._places, worker.place)


class _Worker:
    """One process, as its owner sees it; `place` is its number in the pool."""

    def __init__(self, place: int, share: MachineShare) -> None:
        context = multiprocessing.get_context("spawn")
        self.place, self.is_lost, self.is_writing = place, False, False
        self.pipe, far_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(far_end, share, place), daemon=True)
        self.process.start()
        far_end.close()  # else this process would never see it end
        self._task: bytes | None = None
        self._number = -1

    def begin(self, task: bytes, number: int) -> None:
        """Send a piece, and the pickled task unless the process has it."""
        self._number = number
        try:
            if task is not self._task:
                self.pipe.send_bytes(task)
            self.pipe.send(number)
        except OSError:
            return  # it died, which `end` reports
        self._task = task

    def end(self) -> Finished[Any] | None:
        """Return what the process sent, or that it died; `None` if it only announced that it writes its result.

        Raises:
            WorkerError: it exited with an error code, for example because it cannot start.
        """
        try:
            finished: Finished[Any] | None = self.pipe.recv()
            self.is_writing = finished is None
            return finished
        except (EOFError, OSError):
            self.is_lost, self.is_writing = True, False
        self.process.join(SECONDS_TO_END)
        code = self.process.exitcode or 0
        if 0 < code < CRASHED:
            raise WorkerError(
                f"a worker process ended with exit code {code}; it printed the reason. A script must start processes "
                'under if __name__ == "__main__":.'
            )
        return Finished(
            self._number,
            error=WorkerError(
                f"the process that did piece {self._number} was ended by "
                f"{f'signal {-code}' if code < 0 else f'code {code:#x}'}, {1 + RETRIES} times, probably because "
                "memory was short; give fewer jobs, or a smaller max_memory."
            ),
        )

    def kill(self) -> None:
        """End the process, whatever it does."""
        self.pipe.close()
        self.process.kill()
        self.process.join()
        self.process.close()


def _serve(pipe: Connection, share: MachineShare, place: int) -> None:
    """Do one piece after another until the pipe is closed; runs in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    with suppress(EOFError, ConnectionError):
        pickled = pipe.recv_bytes()  # before torch is loaded, which takes long: the sender waits
        keep_freed_memory()
        load_torch()
        share.take(place)
        scheduler.on_writing = partial(pipe.send, None)
        task = pickle.loads(pickled)  # noqa: S301  from the process that started this one
        while True:
            message = pipe.recv()
            if isinstance(message, int):
                pipe.send(attempt_away(task, message))
            else:
                task = message
