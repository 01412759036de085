"""The workers of a running Dask cluster.

One piece of work is one task of Dask. The graph never holds more than a few tasks for each worker. A worker does one
piece at a time, with all of its threads, in the folder of the run.
"""

from __future__ import annotations

import functools
import json
import operator
import pickle
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import chdir, closing, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from queue import Empty, Queue
from types import ModuleType
from typing import Any, Self

from deconv_cli.errors import FileAccessError, UsageError, WorkerError, import_extra
from deconv_cli.schedulers.scheduler import (
    RETRIES,
    Finished,
    MachineShare,
    Result,
    Scheduler,
    WorkSettings,
    attempt_away,
)
from deconv_cli.vocabulary import package_version

SECONDS_TO_CONNECT = 30
"""How long a scheduler may take to answer."""
SECONDS_TO_MISS = 5
"""After this time without a finished piece the workers are counted."""
UNDER_WAY = 2
"""Pieces that each worker has at once, so that none waits for the network."""
SCHEDULER_ENDED = "the scheduler of the cluster ended before the work was done; resume the run with another one."
WRITTEN_BY_DASK = (
    "give a file that 'dask scheduler --scheduler-file FILE' wrote, or an address such as tcp://host:8786."
)
_ONE_AT_A_TIME = threading.Lock()
"""Held by a worker while it works: its threads belong to torch, and its memory to one piece."""


class DaskCluster(Scheduler):
    """Works on the workers of a Dask scheduler, to which `client` is connected."""

    def __init__(self, client: Any) -> None:  # noqa: ANN401
        self._client = client
        self.n_workers = len(client.nthreads())
        self.address = client.dashboard_link

    @classmethod
    def covers(cls, settings: WorkSettings) -> bool:
        """Cover running clusters."""
        return settings.scheduler is not None

    @classmethod
    def open(cls, settings: WorkSettings) -> Self:
        """Connect to a cluster."""
        assert settings.scheduler is not None
        return cls(_connect(import_extra("distributed", "clusters need", "cluster"), settings.scheduler))

    def memory_of_piece(self, given: int | None, free: int) -> int:
        """Return the given limit, or half of the memory of the smallest worker: Dask ends those that use most of it."""
        if given is not None:
            return given
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        return min((int(worker["memory_limit"]) // 2 for worker in workers if worker["memory_limit"]), default=free)

    def run(self, task: Callable[[int], Result], numbers: Iterable[int]) -> Iterator[Finished[Result]]:
        """Submit a few more pieces than there are workers, and another one for each that is done.

        A worker that dies at one piece makes Dask blame every piece that it has. These are tried again when all others
        are done, each alone.
        """
        suspects: list[int] = []
        with closing(self._side_by_side(task, numbers)) as together:
            for finished in together:
                if _is_killed(finished.error):
                    suspects.append(finished.number)
                else:
                    yield _explained(finished)
        for number in suspects:
            with closing(self._side_by_side(task, [number])) as alone:
                yield from map(_explained, alone)

    def _side_by_side(
        self, task: Callable[[int], Result], numbers: Iterable[int]
    ) -> Generator[Finished[Result], None, None]:
        """Yield each piece when it is done, with the error as Dask raises it."""
        # Sent once; a worker that comes later gets it from the scheduler. The graph names functions of the standard
        # library alone, so the scheduler, which reads it, needs nothing of this package.
        work = functools.partial(_do_piece, pickle.dumps(task), _versions(), str(Path.cwd()))
        piece = self._client.submit(pickle.loads, pickle.dumps(work), pure=False)
        # Otherwise all would go to the worker that has the task, until others steal some.
        first = iter(UNDER_WAY * self._present())
        left, under_way, done = iter(numbers), dict[Any, int](), Queue[Any]()
        try:
            while True:
                n_wanted = UNDER_WAY * max(1, len(self._present())) - len(under_way)
                for number in islice(left, max(0, n_wanted)):
                    at = next(first, None)
                    options = {"retries": RETRIES, "workers": at, "allow_other_workers": at is not None}
                    future = self._client.submit(operator.call, piece, number, pure=False, **options)
                    under_way[future] = number
                    future.add_done_callback(done.put)
                if not under_way:
                    return
                future = self._wait(done)
                yield _finished(future, under_way.pop(future))
        finally:
            if self._client.status == "running":
                self._client.cancel(list(under_way))

    def _wait(self, done: Queue[Any]) -> Any:  # noqa: ANN401  a future
        """Wait for a piece that is done, as long as the scheduler lives."""
        while True:
            try:
                return done.get(timeout=SECONDS_TO_MISS)
            except Empty:
                self._present()

    def _present(self) -> list[str]:
        """List the addresses of the workers.

        Raises:
            WorkerError: the scheduler is gone.
        """
        try:
            return list(self._client.nthreads())
        except (AttributeError, OSError) as error:  # a client that was closed has no scheduler to ask
            raise WorkerError(SCHEDULER_ENDED) from error

    def close(self) -> None:
        """Leave the cluster."""
        self._client.close()


def _finished(future: Any, number: int) -> Finished[Any]:  # noqa: ANN401
    """Return the result or the error of a worker. If it was lost with its worker, Dask computes it again.

    Raises:
        WorkerError: the scheduler is gone.
    """
    try:
        finished: Finished[Any] = future.result()
    except Exception as error:
        if future.status != "error":
            raise WorkerError(SCHEDULER_ENDED) from error
        return Finished(number, error=error)
    return finished


def _connect(distributed: ModuleType, given: str) -> Any:  # noqa: ANN401  a client
    """Connect to a scheduler by its address, or by the file that it wrote its address to."""
    address = given if "://" in given else _address_in(given)
    try:
        # A client takes a minute to end if the scheme of its address is unknown.
        distributed.comm.registry.get_backend(address.partition("://")[0])
        with warnings.catch_warnings():
            # A worker itself refuses pieces if its version of deconv or torch differs.
            warnings.simplefilter("ignore", distributed.versions.VersionMismatchWarning)
            return distributed.Client(address, timeout=SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise WorkerError(
            f"no scheduler of Dask answers at '{address}': {error}; start one with 'dask scheduler', and give the "
            "address that it prints, or its scheduler file."
        ) from error


def _address_in(path: str) -> str:
    """Read the address of a scheduler from its file; Dask would wait for a file that is missing."""
    try:
        return str(json.loads(Path(path).read_bytes())["address"])
    except FileNotFoundError as error:
        raise WorkerError(f"there is no scheduler file '{path}'; {WRITTEN_BY_DASK}") from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise WorkerError(f"'{path}' is not a readable scheduler file; {WRITTEN_BY_DASK}") from error


def _is_killed(error: Exception | None) -> bool:
    """Return whether every worker died that had a piece."""
    return type(error).__name__ == "KilledWorker"


def _explained(finished: Finished[Result]) -> Finished[Result]:
    """Explain an error of Dask, with advice."""
    error = finished.error
    if isinstance(error, FileAccessError):
        error = FileAccessError(f"{str(error).removesuffix('.')}; all workers must see the files under the same paths.")
    elif isinstance(error, ModuleNotFoundError):
        error = WorkerError(f"a worker of the cluster failed: {error}; install the same deconv-cli there as here.")
    elif _is_killed(error):
        error = WorkerError(
            f"piece {finished.number} of the work ended every worker that ran it, probably because memory was short; "
            "start workers with more memory, or give a smaller max_memory."
        )
    return replace(finished, error=error)


def _versions() -> dict[str, str]:
    """Return the versions that decide a result; a build of torch for a CPU and one for a GPU count as the same."""
    return {"deconv": package_version("deconv-cli"), "torch": package_version("torch").partition("+")[0]}


def _do_piece(task: bytes, versions: dict[str, str], folder: str, number: int) -> Finished[Any]:
    """Do one piece on a worker.

    Args:
        task: pickled, so that a worker loads torch only when it works, and not when it passes the task to another one.
        versions: of the packages where the run was started.
        folder: of the run; paths are relative to it.
        number: of the piece.

    Raises:
        OSError: a file or the network failed; Dask tries again.
    """
    from distributed import get_worker

    if versions != _versions():
        here, there = (", ".join(f"{name} {n}" for name, n in each.items()) for each in (_versions(), versions))
        error = UsageError(f"a worker has {here}, but the run was started with {there}; install the same there.")
        return Finished(number, error=error)
    worker = get_worker()
    is_seen = Path(folder).is_dir()
    with _ONE_AT_A_TIME, chdir(folder) if is_seen else nullcontext():
        MachineShare(worker.state.nthreads).take(0)
        finished = attempt_away(_loaded(task), number)
    if finished.may_pass:
        assert finished.error is not None
        raise finished.error
    return finished


@functools.lru_cache(maxsize=1)
def _loaded(task: bytes) -> Callable[[int], Any]:
    """Load a task once, with the state that it keeps between pieces."""
    loaded: Callable[[int], Any] = pickle.loads(task)  # noqa: S301  from the process that started the run
    return loaded
