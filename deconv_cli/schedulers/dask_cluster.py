"""Workers of Dask: a cluster that is running, or one of this machine that lasts as long as the run.

One piece of work is one task of Dask. Its graph knows nothing of pictures, and never holds more than a few tasks for
each worker. A worker does one piece at a time, with all of its threads.
"""

from __future__ import annotations

import json
import logging
import operator
import pickle
import re
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from queue import Empty, Queue
from types import ModuleType
from typing import Any, Generic, Self

from deconv_cli.errors import FileAccessError, UsageError, WorkerError
from deconv_cli.schedulers.dask_piece import Piece
from deconv_cli.schedulers.scheduler import RETRIES, Finished, MachineShare, Result, Scheduler, WorkSettings

SECONDS_TO_CONNECT = 30
"""How long a scheduler may take to answer."""
SECONDS_TO_MISS = 5
"""After so long without a finished piece, the workers are counted."""
ALLOWED_FAILURES = 0
"""How many workers may die of a piece before it is set aside, to be tried again alone."""
UNDER_WAY = 2
"""Pieces that each worker is given at once, so that none waits for the network."""

AT_START = """
import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)
from deconv_cli.allocator import keep_freed_memory; keep_freed_memory()
"""
"""What workers of this machine run first.

Ctrl-C reaches them too, but it is the run that ends them; and memory is kept only by threads that start afterwards.
"""

SECONDS_TO_BE_LOST = 0.5
"""How long to wait before looking again at a piece whose result was lost with its worker."""
LOST = ("lost", "pending")
"""States of pieces that Dask computes again."""
SCHEDULER_ENDED = "the scheduler of the cluster ended before the work was done; go on with another one."
WRITTEN_BY_DASK = "give one that 'dask scheduler --scheduler-file FILE' wrote, or an address such as tcp://host:8786."


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
            import dask
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
        # What a hundred looks a second at each stack tell, nobody reads.
        with dask.config.set({"distributed.worker.profile.enabled": False}):
            cluster = distributed.LocalCluster(
                n_workers=n_workers,
                threads_per_worker=1,
                memory_limit=0,  # what a piece takes was planned, and a limit of Dask's ends workers
                silence_logs=logging.CRITICAL,  # a worker that is lost, and a piece that fails, are reported otherwise
                preload=[AT_START],
                scheduler_kwargs={"allowed_failures": ALLOWED_FAILURES},
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
        """Submit few more pieces than there are workers, and another one for each that is done.

        Workers die of one piece, but every piece that they have is said to have ended them. So those are tried again
        when all others are done, each by itself.
        """
        suspects: list[int] = []
        with closing(self._side_by_side(task, numbers)) as together:
            for finished in together:
                if _is_killed(finished.error):
                    suspects.append(finished.number)
                else:
                    yield _explained(finished)
        for number in suspects:
            yield _explained(self._by_itself(task, number))

    def _by_itself(self, task: Callable[[int], Result], number: int) -> Finished[Result]:
        """Try a piece again of which a worker died; schedulers that were found count themselves how many did."""
        for _ in range(1 if self._cluster is None else RETRIES):
            with closing(self._side_by_side(task, [number])) as alone:
                (finished,) = alone
            if not _is_killed(finished.error):
                break
        return finished

    def _side_by_side(
        self, task: Callable[[int], Result], numbers: Iterable[int]
    ) -> Generator[Finished[Result], None, None]:
        """Give each piece as it is done, with the error as Dask gives it."""
        left, pieces = iter(numbers), _Pieces[Result](self._client, task, self._share, self._present())
        try:
            while True:
                n_wanted = UNDER_WAY * max(1, len(self._present())) - pieces.n_under_way
                for number in islice(left, max(0, n_wanted)):
                    pieces.submit(number)
                if not pieces.n_under_way:
                    return
                while (finished := pieces.next()) is None:
                    self._replace_workers()
                yield finished
        finally:
            pieces.cancel()

    def _present(self) -> list[str]:
        """List the addresses of the workers.

        Raises:
            WorkerError: the scheduler is gone.
        """
        try:
            return list(self._client.nthreads())
        except (AttributeError, OSError) as error:  # a client that was closed has no scheduler to ask
            raise WorkerError(SCHEDULER_ENDED) from error

    def _replace_workers(self) -> None:
        """Start workers in the place of those that died as they started, which Dask does not."""
        if self._cluster is not None and len(self._present()) < self.n_workers:
            self._cluster.scale(self.n_workers)

    def close(self) -> None:
        """Leave the cluster, or end it where it was started for this."""
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()


class _Pieces(Generic[Result]):
    """Pieces of one task that the workers of Dask have been given.

    Args:
        client: of the cluster.
        task: to be called with their numbers.
        share: what a worker of this machine takes.
        workers: their addresses.
    """

    def __init__(
        self,
        client: Any,  # noqa: ANN401
        task: Callable[[int], Result],
        share: MachineShare | None,
        workers: list[str],
    ) -> None:
        self._client = client
        # Sent once; a worker that comes later has it from the scheduler. The graph names functions of the standard
        # library alone: the scheduler, which reads it, needs nothing of this package, and of arrays it sees bytes.
        self._piece = client.submit(pickle.loads, pickle.dumps(Piece(pickle.dumps(task), share)), pure=False)
        self._under_way: dict[Any, int] = {}
        self._patience: float = SECONDS_TO_MISS
        # Else all would go to the worker that was sent the task, until others steal some.
        self._first = iter(UNDER_WAY * workers)
        self._done: Queue[Any] = Queue()

    @property
    def n_under_way(self) -> int:
        """Pieces that were submitted and not given back."""
        return len(self._under_way)

    def submit(self, number: int) -> None:
        """Give a piece to whichever worker has time for it."""
        first = next(self._first, None)
        future = self._client.submit(
            operator.call,
            self._piece,
            number,
            pure=False,
            retries=RETRIES,
            workers=first,
            allow_other_workers=first is not None,
        )
        self._under_way[future] = number
        future.add_done_callback(self._done.put)

    def next(self) -> Finished[Result] | None:
        """Wait some seconds for a piece that is done; `None` where none is.

        Raises:
            WorkerError: the scheduler is gone.
        """
        try:
            future = self._done.get(timeout=SECONDS_TO_MISS)
        except Empty:
            return None
        finished = self._finished(future)
        if finished is None:
            threading.Timer(SECONDS_TO_BE_LOST, self._done.put, [future]).start()
            return None
        del self._under_way[future]
        return finished

    def _finished(self, future: Any) -> Finished[Result] | None:  # noqa: ANN401
        """Give what a worker sent, or why none could; `None` where it died before that came here: Dask does it anew."""
        if future.status == "finished":
            try:
                finished: Finished[Result] = future.result(timeout=self._patience)
            except TimeoutError:
                self._patience *= 2  # what is broken off is fetched again from its start
                return None
            except Exception:
                if future.status == "finished":
                    raise
            else:
                return finished
        if future.status in LOST:
            return None
        if future.status != "error":
            raise WorkerError(SCHEDULER_ENDED)
        return Finished(self._under_way[future], error=future.exception())

    def cancel(self) -> None:
        """Give up what is not done."""
        if self._client.status == "running":
            self._client.cancel(list(self._under_way))


def _connect(distributed: ModuleType, given: str) -> Any:  # noqa: ANN401  a client
    """Connect to a scheduler by its address, or by the file that it wrote that to."""
    address = given if "://" in given else _address_in(given)
    try:
        # A client that was given no known scheme is a minute at its end.
        distributed.comm.registry.get_backend(address.partition("://")[0])
        with warnings.catch_warnings():
            # A worker whose versions matter refuses its pieces.
            warnings.simplefilter("ignore", distributed.versions.VersionMismatchWarning)
            return distributed.Client(address, timeout=SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise WorkerError(
            f"no scheduler of Dask answers at '{address}': {error}; start one with 'dask scheduler', and give the "
            "address that it prints, or its scheduler file."
        ) from error


def _address_in(path: str) -> str:
    """Read the address of a scheduler in its file, for which Dask would wait where it is missing."""
    try:
        return str(json.loads(Path(path).read_bytes())["address"])
    except FileNotFoundError as error:
        raise WorkerError(f"there is no scheduler file '{path}'; {WRITTEN_BY_DASK}") from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise WorkerError(f"'{path}' is no scheduler file that can be read; {WRITTEN_BY_DASK}") from error


def _is_killed(error: Exception | None) -> bool:
    """Tell whether every worker died that had a piece."""
    return type(error).__name__ == "KilledWorker"


def _explained(finished: Finished[Result]) -> Finished[Result]:
    """Say what an error of Dask means, and what helps."""
    error = finished.error
    if isinstance(error, FileAccessError):
        error = FileAccessError(f"{str(error).removesuffix('.')}; all workers have to see the files by the same paths.")
    elif isinstance(error, ModuleNotFoundError):
        error = WorkerError(f"a worker of the cluster says: {error}; install deconv-cli there as it is here.")
    elif _is_killed(error):
        error = WorkerError(
            f"piece {finished.number} of the work ended every worker that did it; the system does that where memory is "
            "short: start workers with more of it, or give a smaller max_memory."
        )
    return replace(finished, error=error)
