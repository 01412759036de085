"""Measure one case in a process of its own: median times, and the memory at its peak."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil

ROOT = Path(__file__).parent.parent
MAX_REPETITIONS = 5
REPETITION_BUDGET_S = 10.0
DEFAULT_LIMIT_S = 1800.0

Value = TypeVar("Value")

Figures = dict[str, float | int | str]
"""What a case measured, by name; seconds and bytes where a name ends in `_s` or `_bytes`."""


@dataclass(frozen=True)
class Scale:
    """How large a run is.

    Attributes:
        is_quick: tiny sizes, which show that all works and say nothing about speed.
        peer_limit_s: seconds that another package's solver may take for one solution.
    """

    is_quick: bool
    peer_limit_s: float

    def pick(self, full: Value, quick: Value) -> Value:
        """Take the full size or the quick one."""
        return quick if self.is_quick else full


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        name: what the tables call it; unique within its question.
        function: a function of this folder, at the top level of its module, that measures and returns figures.
        settings: its keyword arguments, which must survive JSON.
        peer: the package to import, beside our own, without which the case is skipped.
        n_bytes: memory below which it is not tried.
        limit_s: seconds after which it is given up.
    """

    name: str
    function: Callable[..., Figures]
    settings: dict[str, object] = field(default_factory=dict)
    peer: str | None = None
    n_bytes: float = 0.0
    limit_s: float = DEFAULT_LIMIT_S


def measure(case: Case) -> Figures:
    """Run a case in a fresh process; where it gives no figures, the only one is `failed`, a sentence."""
    if case.peer is not None and importlib.util.find_spec(case.peer) is None:
        return {"failed": f"skipped: {case.peer} is not installed"}
    free = psutil.virtual_memory().available
    if case.n_bytes > free:
        return {"failed": f"skipped: needs {case.n_bytes / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"}
    function = case.function
    arguments = [function.__module__, function.__qualname__, json.dumps(case.settings)]
    command = [sys.executable, "-m", "benchmarks.measuring", *arguments]
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=case.limit_s, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped after {case.limit_s:.0f} s"}
    if run.returncode < 0:
        return {"failed": f"killed by signal {-run.returncode}" + " (out of memory?)" * (run.returncode == -9)}
    if run.returncode > 0:
        return {"failed": run.stderr.strip().splitlines()[-1]}
    return json.loads(run.stdout.strip().splitlines()[-1])


def timed(call: Callable[[], Value], clock: Callable[[], float] = time.perf_counter) -> tuple[float, Value]:
    """Time a call.

    It is repeated while that fits into ten seconds, five times at most; the first call, in which libraries warm up,
    counts only if it stays the only one. No result is kept during the next call.

    Returns:
        The median time by the clock in seconds, by default wall time, and the last result.
    """
    times: list[float] = []
    while True:
        started = clock()
        value = call()
        times.append(clock() - started)
        if len(times) > MAX_REPETITIONS or sum(times) + times[-1] > REPETITION_BUDGET_S:
            return statistics.median(times[1:] or times), value
        del value


@dataclass
class Peak:
    """The memory that a block of code took, in bytes; 0 until it ends."""

    n_bytes: int = 0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure how much a block of code raises the resident memory of this process.

    The libraries and the data that are loaded before are not counted. Linux only, since no other
    system forgets an earlier peak when asked; elsewhere the figure stays 0.
    """
    peak = Peak()
    forget = Path("/proc/self/clear_refs")
    if not forget.exists():
        yield peak
        return
    forget.write_text("5", encoding="utf-8")
    before = _resident("VmRSS")
    yield peak
    peak.n_bytes = _resident("VmHWM") - before


def _resident(name: str) -> int:
    """Read a size of this process, in bytes; `ru_maxrss` would not do, since it can hold the peak of the parent."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _run_here(module: str, function: str, settings: str) -> None:
    """Run a case in this process, which was started for it, and print its figures as the last line."""
    figures = getattr(importlib.import_module(module), function)(**json.loads(settings))
    sys.stdout.write("\n" + json.dumps(figures) + "\n")


if __name__ == "__main__":
    _run_here(*sys.argv[1:])
