"""Workers of Dask: a cluster that is running, or one of this machine that lasts as long as the run.

One piece of work is one task of Dask. Its graph knows nothing of pictures, and never holds more than a few tasks for
each worker. A worker does one piece at a time, with all of its threads.
"""

from __future__ import annotations

import functools
import logging
import operator
import os
import pickle
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import chdir, nullcontext, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from queue import Empty, Queue
from types import ModuleType
from typing import Any, Self

from deconv_cli.errors import FileAccessError, UsageError, WorkerError
from deconv_cli.schedulers.machine_share import MachineShare
from deconv_cli.schedulers.scheduler import RETRIES, Finished, Result, Scheduler, attempt_away
from deconv_cli.schedulers.work_settings import WorkSettings

SECONDS_TO_CONNECT = 30
"""How long a scheduler may take to answer."""
SECONDS_TO_MISS = 5
"""How long no piece may be done until it is looked whether there are workers."""
UNDER_WAY = 2
"""Pieces that each worker is given at once, so that none waits for the network."""

AT_START = """
import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)
from deconv_cli.allocator import keep_freed_memory; keep_freed_memory()
"""
"""What workers of this machine run first.

Ctrl-C reaches them too, but it is the run that ends them; and memory is kept only by threads that start afterwards.
"""

_ONE_AT_A_TIME = threading.Lock()
"""Held by a worker while it works: its threads belong to torch, and its memory to one piece."""
LOST = ("lost", "pending")
"""What Dask calls pieces that it has done again."""
SCHEDULER_ENDED = "the scheduler of the cluster ended before the work was done; go on with another one."


class DaskCluster(Scheduler):
    """Works on the workers of a scheduler of Dask.

    Args:
        client: connected to it.
        cluster: ended with this scheduler, where it was started for it on this machine, and
        share: what each of its workers takes.
    """

    def __init__(self, client: Any, cluster: Any = None, share: MachineShare | None = None) -> None:  # noqa: ANN401
        self._client, self._cluster, self._share = client, cluster, share
        self.n_workers = len(client.nthreads())
        self.n_sharing = 1 if cluster is None else self.n_workers
        self.n_threads = min(client.nthreads().values(), default=1) if share is None else share.n_threads
        self.address = client.dashboard_link if cluster is None or find_spec("bokeh") else None

    @classmethod
    def covers(cls, settings: WorkSettings) -> bool:
        """Cover clusters that are running, and those of this machine."""
        return settings.scheduler is not None or (settings.cluster or "").partition(":")[0] == "local"

    @classmethod
    def open(cls, settings: WorkSettings) -> Self:
        """Connect to a cluster, or start one."""
        try:
            import distributed
        except ModuleNotFoundError as error:
            raise UsageError("clusters need the package distributed; pip install 'deconv-cli[cluster]'.") from error
        if settings.scheduler is not None:
            return cls(_connect(distributed, settings.scheduler))
        found = re.fullmatch(r"local:([1-9]\d{0,3})", settings.cluster or "", re.ASCII)
        if found is None:
            raise UsageError(f"cluster must be local:N with N processes of this machine, but is '{settings.cluster}'.")
        n_workers = int(found[1])
        share = MachineShare.of(n_workers, settings.device)
        cluster = distributed.LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            memory_limit=0,  # what a piece takes was planned, and a limit of Dask's ends workers
            silence_logs=logging.CRITICAL,  # a worker that is lost, and a piece that fails, are told otherwise
            preload=[AT_START],
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        )
        return cls(distributed.Client(cluster, set_as_default=False), cluster, share)

    def memory_of_piece(self, given: int | None, free: int) -> int:
        """Give half of what Dask lets a worker elsewhere take, which ends those that come near it."""
        if given is not None or self._share is not None:
            return super().memory_of_piece(given, free)
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        return min((int(worker["memory_limit"]) // 2 for worker in workers if worker["memory_limit"]), default=free)

    def run(self, task: Callable[[int], Result], numbers: Iterable[int]) -> Iterator[Finished[Result]]:
        """Submit few more pieces than there are workers, and another one for each that is done."""
        # Sent once; a worker that comes later has it from the scheduler. The graph names functions of the standard
        # library alone: the scheduler, which reads it, needs nothing of this package, and of arrays it sees bytes.
        piece = self._client.submit(pickle.loads, pickle.dumps(Piece(pickle.dumps(task), self._share)), pure=False)
        left = iter(numbers)
        under_way: dict[Any, int] = {}
        suspects: list[int] = []  # on workers that died, perhaps of another piece: tried again, each by itself
        are_by_themselves = False
        done: Queue[Any] = Queue()
        try:
            while True:
                n_wanted = UNDER_WAY * max(1, self._n_present()) - len(under_way)
                numbers_now = list(islice(left, max(0, n_wanted)))
                if not under_way and not numbers_now and suspects:
                    numbers_now, are_by_themselves = [suspects.pop()], True
                for number in numbers_now:
                    future = self._client.submit(operator.call, piece, number, pure=False, retries=RETRIES)
                    under_way[future] = number
                    future.add_done_callback(done.put)
                if not under_way:
                    return
                future = self._next(done)
                if future.status in LOST:  # it was done, but its worker died before the result came here
                    future.add_done_callback(done.put)
                    continue
                number = under_way.pop(future)
                if _is_killed(future) and not are_by_themselves:
                    suspects.append(number)
                    continue
                yield _finished(future, number)
        finally:
            if self._client.status == "running":
                self._client.cancel(list(under_way))

    def _n_present(self) -> int:
        """Count the workers.

        Raises:
            WorkerError: the scheduler is gone.
        """
        try:
            return len(self._client.nthreads())
        except (AttributeError, OSError) as error:  # a client that was closed has no scheduler to ask
            raise WorkerError(SCHEDULER_ENDED) from error

    def _next(self, done: Queue[Any]) -> Any:  # noqa: ANN401  a future
        """Wait for a piece; start workers in the place of those that died as they started, which Dask does not."""
        while True:
            with suppress(Empty):
                return done.get(timeout=SECONDS_TO_MISS)
            if self._cluster is not None and self._n_present() < self.n_workers:
                self._cluster.scale(self.n_workers)

    def close(self) -> None:
        """Leave the cluster, or end it where it was started for this."""
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()


@dataclass(frozen=True)
class Piece:
    """One call of a task on a worker.

    Attributes:
        task: of the run, pickled: workers send one another what they have, and what loads torch would hold them up.
        share: what a worker takes of this machine; on others it takes all of its threads, and its first GPU.
        versions: of the packages where the run was started.
        folder: in which it was started, from which paths are told.
    """

    task: bytes
    share: MachineShare | None
    versions: dict[str, str] = field(default_factory=lambda: _versions())
    folder: str = field(default_factory=os.getcwd)

    def __call__(self, number: int) -> Finished[Any]:
        """Do one piece.

        Raises:
            OSError: a file or the network failed; Dask tries again.
        """
        from distributed import get_worker

        if self.versions != _versions():
            here, there = (", ".join(f"{name} {n}" for name, n in v.items()) for v in (_versions(), self.versions))
            error = UsageError(f"a worker has {here}, but the run was started with {there}; install the same there.")
            return Finished(number, error=error)
        worker = get_worker()
        is_seen = Path(self.folder).is_dir()
        with _ONE_AT_A_TIME, chdir(self.folder) if is_seen else nullcontext():
            if self.share is None:
                MachineShare(worker.state.nthreads).take(0)
            else:
                self.share.take(int(worker.name))
            finished = attempt_away(_loaded(self.task), number)
        if finished.may_pass:
            assert finished.error is not None
            raise finished.error
        return finished


@functools.lru_cache(maxsize=1)
def _loaded(task: bytes) -> Callable[[int], Any]:
    """Load a task once, with what it keeps from piece to piece."""
    loaded: Callable[[int], Any] = pickle.loads(task)  # noqa: S301  from the process that started the run
    return loaded


def _versions() -> dict[str, str]:
    """Give the versions that decide what a piece gives; builds of torch for other devices are alike."""
    return {"deconv": version("deconv-cli"), "torch": version("torch").partition("+")[0]}


def _connect(distributed: ModuleType, address: str) -> Any:  # noqa: ANN401  a client
    """Connect to a scheduler by its address, or by the file that it wrote that to."""
    at = {"address": address} if "://" in address else {"scheduler_file": address}
    try:
        if "scheduler_file" in at:
            Path(address).stat()  # Dask would wait for it
        with warnings.catch_warnings():
            # A worker whose versions matter refuses its pieces.
            warnings.simplefilter("ignore", distributed.versions.VersionMismatchWarning)
            return distributed.Client(**at, timeout=SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise WorkerError(
            f"no scheduler of Dask answers at '{address}': {error}; start one with 'dask scheduler', and give the "
            "address that it prints, or its scheduler file."
        ) from error


def _is_killed(future: Any) -> bool:  # noqa: ANN401
    """Tell whether every worker died that had this piece."""
    return future.status == "error" and type(future.exception()).__name__ == "KilledWorker"


def _finished(future: Any, number: int) -> Finished[Any]:  # noqa: ANN401
    """Give what a worker sent, or why none could.

    Raises:
        WorkerError: the scheduler is gone.
    """
    if future.status == "finished":
        finished: Finished[Any] = future.result()
        return finished
    if future.status != "error":
        raise WorkerError(SCHEDULER_ENDED)
    error = future.exception()
    if isinstance(error, FileAccessError):
        error = FileAccessError(f"{str(error).removesuffix('.')}; all workers have to see the files by the same paths.")
    elif isinstance(error, ModuleNotFoundError):
        error = WorkerError(f"a worker of the cluster says: {error}; install deconv-cli there as it is here.")
    elif _is_killed(future):
        error = WorkerError(
            f"piece {number} of the work ended every worker that did it; the system does that where memory is short: "
            "start workers with more of it, or give a smaller max_memory."
        )
    return Finished(number, error=error)
