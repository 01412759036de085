"""How much longer than its own start does a training script take under `deconv check-grad --run`?"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time

from benchmarks.measuring import ROOT, Case, Figures, Scale
from benchmarks.printing import Report, Target, column, number, seconds, table, word

FOLDERS = {
    ROOT / "tests" / "fixtures" / "scripts": None,
    ROOT / "tests" / "fixtures" / "library_scripts": {
        "lightning_module": "lightning",
        "hugging_face_trainer": "accelerate",
    },
}
"""Scripts of these folders, and the library that a script needs."""

LIMIT_S = 60.0
QUICK = 2
START = """
import runpy, sys, torch
def stop(*_given, **_named):
    raise SystemExit
torch.autograd.backward = stop
runpy.run_path(sys.argv[1], run_name="__main__")
"""
"""Runs a script until it calls backward for the first time."""


def cases(scale: Scale) -> list[Case]:
    """List what is measured."""
    scripts = [
        (path, (peers or {}).get(path.stem)) for folder, peers in FOLDERS.items() for path in folder.glob("*.py")
    ]
    several = sorted(scripts)[: scale.pick(None, QUICK)]
    return [Case(path.stem, run, {"script": str(path.relative_to(ROOT))}, peer) for path, peer in several]


def run(script: str) -> Figures:
    """Run a script to its first backward pass, to its end, and under the checker."""
    path = str(ROOT / script)
    check = [sys.executable, "-m", "deconv_cli", "check-grad", "--json", "--run", path]
    start, whole, checked = (
        _timed(words) for words in ([sys.executable, "-c", START, path], [sys.executable, path], check)
    )
    record = json.loads(checked[2])
    return {
        **{f"{name}_wall_s": taken[0] for name, taken in (("start", start), ("whole", whole), ("checked", checked))},
        **{f"{name}_s": taken[1] for name, taken in (("start", start), ("whole", whole), ("checked", checked))},
        "over_start_s": max(checked[0] - start[0], checked[1] - start[1]),
        "says": record["conclusion"],
        "is_healthy": int(record["exit_code"] == 0),
    }


def _timed(words: list[str]) -> tuple[float, float, str]:
    """Run a process; returns wall time and processor time in seconds, and what it wrote."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def report(outcomes: dict[str, Figures]) -> Report:
    """Compare."""
    checked = [figures for figures in outcomes.values() if "failed" not in figures]
    slowest = max((number(figures, "over_start_s") or 0.0 for figures in checked), default=None)
    healthy = sum(bool(number(figures, "is_healthy")) for figures in checked)
    targets = [
        Target("longest time over a script's own start", LIMIT_S, slowest, unit=" s"),
        Target("sound scripts checked without an edit", 10, healthy or None, is_floor=True),
    ]
    columns = [
        column("start", "start_s", seconds),
        column("whole run", "whole_s", seconds),
        column("under the checker", "checked_s", seconds),
        column("start, by the clock", "start_wall_s", seconds),
        column("whole run, by the clock", "whole_wall_s", seconds),
        column("under the checker, by the clock", "checked_wall_s", seconds),
        column("over the start, the longer one", "over_start_s", seconds),
        word("says", "says"),
    ]
    title = (
        "Training scripts in our own words after public ones, all of them sound, under `deconv check-grad --run`: "
        "processor time and time by the clock until the first `backward()`, to the end, and with the checker."
    )
    return Report("Training scripts", targets, [table(title, "script", outcomes, columns)])
