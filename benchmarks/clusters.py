"""How much sooner is a large picture restored by two workers than by one?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil

import deconv_cli
from benchmarks import problems
from benchmarks.measuring import Case, Figures, Scale
from benchmarks.printing import Report, Target, column, number, ratio, seconds, table, times
from deconv_cli.blocks.block_plan import BlockOptions
from deconv_cli.blocks.invert_blocks import LargeFileOptions, invert_blocks
from deconv_cli.schedulers.local_workers import SerialScheduler
from deconv_cli.schedulers.scheduler import Scheduler, WorkSettings, start_scheduler

WORKERS = ("processes", "Dask")
N_ROUNDS = 3
MEMORY = 2 * 2**30


def cases(scale: Scale) -> list[Case]:
    """List what is measured."""
    sizes: dict[str, object] = {"size": scale.pick(12288, 200), "block": scale.pick(1024, 80)}
    return [Case(name, two_workers, sizes | {"workers": name}) for name in WORKERS]


@contextmanager
def start(workers: str) -> Iterator[Scheduler]:
    """Start two processes, or connect to a Dask cluster of two workers."""
    if workers == "processes":
        with start_scheduler(WorkSettings(jobs=2)) as two:
            yield two
        return
    import distributed

    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address=None) as cluster,
        start_scheduler(WorkSettings(scheduler=cluster.scheduler_address)) as two,
    ):
        yield two


def two_workers(workers: str, size: int, block: int) -> Figures:
    """Restore a picture by one process and by two workers in turn, each with one thread, from file to file."""
    kernel = deconv_cli.make_kernel("gaussian:2")
    with TemporaryDirectory() as place, start(workers) as two:
        folder = Path(place)
        np.save(folder / "in.npy", deconv_cli.forward(problems.photograph(size), kernel, boundary="reflect").numpy())
        options = BlockOptions(MEMORY, (block, block), n_threads=1)

        def restore(scheduler: Scheduler) -> float:
            started = time.perf_counter()
            files = LargeFileOptions(force=True)
            found = invert_blocks(
                folder / "in.npy",
                kernel,
                folder / "out.npy",
                files=files,
                blocks=options,
                scheduler=scheduler,
                defaults="picture",
                lam=1e-2,
            )
            assert found.summary is not None
            return time.perf_counter() - started

        restore(two)  # its workers are started by now, as those of a long run are
        rounds = [(restore(SerialScheduler()), restore(two)) for _ in range(N_ROUNDS)]
    one_s, two_s = (statistics.median(each) for each in zip(*rounds, strict=True))
    return {"one_s": one_s, "two_s": two_s, "load": psutil.getloadavg()[0]}


def report(outcomes: dict[str, Figures]) -> Report:
    """Compare."""

    def share(figures: Figures) -> float | None:
        return ratio(number(figures, "two_s"), number(figures, "one_s"))

    targets = [
        Target(f"two workers ({name}): time, in that of one", 0.6, share(figures), unit=" ×")
        for name, figures in outcomes.items()
    ]
    columns = [
        column("one", "one_s", seconds),
        column("two", "two_s", seconds),
        ("two, in times of one", lambda figures: times(share(figures))),
        ("load", lambda figures: f"{number(figures, 'load') or 0:.1f}"),
    ]
    title = (
        "A photograph of 12288 × 12288, Gaussian blur, λ = 0.01, unknown border, in blocks of 1024 × 1024, by workers "
        "of one thread each, with planning, reading and writing; medians of three."
    )
    return Report("Clusters", targets, [table(title, "workers", outcomes, columns)])
