"""What a worker of Dask does: one piece at a time, with all of its threads, in the folder of the run."""

from __future__ import annotations

import functools
import os
import pickle
import threading
from collections.abc import Callable
from contextlib import chdir, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deconv_cli.errors import UsageError
from deconv_cli.schedulers.scheduler import Finished, MachineShare, attempt_away
from deconv_cli.vocabulary import package_version

_ONE_AT_A_TIME = threading.Lock()
"""Held by a worker while it works: its threads belong to torch, and its memory to one piece."""


@dataclass(frozen=True)
class Piece:
    """One call of a task on a worker.

    Attributes:
        task: of the run, pickled: workers send one another what they have, and what loads torch would hold them up.
        share: what a worker takes of this machine; on others it takes all of its threads, and its first GPU.
        versions: of the packages where the run was started.
        folder: in which it was started, to which paths are relative.
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
    return {"deconv": package_version("deconv-cli"), "torch": package_version("torch").partition("+")[0]}
