"""What does a folder of frames cost beyond the arithmetic: reading, tests, hashes, writing that is checked?

Compare the solver alone, on frames in memory, with `deconv invert` on all their files, from start to end, and with one
process for each file.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tifffile
import torch

import deconv_cli
from benchmarks import problems
from benchmarks.measuring import ROOT, Case, Figures, Scale
from benchmarks.printing import Report, Target, column, count, number, ratio, seconds, table, times
from deconv_cli.io import plan_output, read_image
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.workflows.pipeline import Pipeline
from deconv_cli.workflows.progress_listener import ProgressListener
from deconv_cli.workflows.resolve_settings import InputMetadata

KERNEL = "gaussian:1.5"
FULL_SCALE, NOISE = 20000.0, 20.0
SOLVER_STEPS = ("choosing λ", "building the inverse", "restoring")
LIMIT = 1.3
"""The time that a file may take, in that of the solver."""


def cases(scale: Scale) -> list[Case]:
    """List what is measured."""
    size, few, many = scale.pick((512, 100, 1000), (32, 3, 4))
    ways: dict[str, tuple[int, list[str]]] = {
        "λ = 1e-3": (many, ["--lambda", "1e-3"]),
        "λ = 1e-3, two processes": (many, ["--lambda", "1e-3", "--jobs", "2"]),
        "λ from each file": (few, []),
        "Richardson–Lucy": (few, ["--method", "richardson-lucy"]),
    }
    return [Case(name, folder, {"size": size, "n_files": n, "options": words}) for name, (n, words) in ways.items()]


class StepTimer(ProgressListener):
    """Adds up the seconds of each step of a reconstruction."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._step, self._since = "", time.perf_counter()

    def begin(self, step: str, *, goal: float | None = None, limit: int = 0) -> None:
        """End the current step, and begin another."""
        del goal, limit
        now = time.perf_counter()
        self.seconds[self._step] += now - self._since
        self._step, self._since = step, now


def folder(size: int, n_files: int, options: list[str]) -> Figures:
    """Restore frames in memory by the solver alone, then as files by one command, then one file by a process."""
    with TemporaryDirectory() as name:
        frames = _write_frames(Path(name, "frames"), size, n_files)
        solver_s, measuring_s = _solve(frames, options)
        files_s = _read_and_write(Path(name, "frames"), Path(name, "written"))
        started = time.perf_counter()
        _invert(Path(name), "frames", "restored", options)
        command_s = time.perf_counter() - started
        started = time.perf_counter()
        _invert(Path(name), "frames/frame_0.tif", "alone.tif", [w for w in options if w not in ("--jobs", "2")])
        alone_s = time.perf_counter() - started
    return {
        "n_files": n_files,
        "solver_s": solver_s / n_files,
        "measuring_s": measuring_s / n_files,
        "files_s": files_s / n_files,
        "command_s": command_s / n_files,
        "alone_s": alone_s,
    }


def _write_frames(path: Path, size: int, n_files: int) -> list[torch.Tensor]:
    """Write noisy 16-bit frames of a scene that moves; gives their samples, as reading them would."""
    path.mkdir()
    kernel = deconv_cli.make_kernel(KERNEL)
    scene = deconv_cli.forward(FULL_SCALE * problems.photograph(size), kernel, boundary="circular")
    generator = torch.Generator().manual_seed(0)
    frames = []
    for frame in range(n_files):
        noisy = scene.roll((7 * frame, 3 * frame), (-2, -1)) + NOISE * torch.randn(scene.shape, generator=generator)
        samples = noisy[0].clamp(0, 65535).round().numpy().astype(np.uint16)
        tifffile.imwrite(path / f"frame_{frame}.tif", samples)
        frames.append(torch.from_numpy(samples.astype(np.int32))[None, None])
    return frames


def _solve(frames: list[torch.Tensor], options: list[str]) -> tuple[float, float]:
    """Give the seconds of the solver, and those of the tests of what it leaves over."""
    typed = dict(zip(options[::2], options[1::2], strict=True))
    settings = ReconstructionSettings.of(
        defaults="picture",
        dimensions=2,
        lam=float(typed["--lambda"]) if "--lambda" in typed else None,
        method=typed.get("--method", "auto"),
    )
    pipeline, timer = Pipeline(deconv_cli.make_kernel(KERNEL), settings), StepTimer()
    for frame in frames:
        pipeline.reconstruct(frame, pipeline.resolve(InputMetadata(sample_type="uint16")), progress=timer)
        timer.begin("")
    return sum(timer.seconds[step] for step in SOLVER_STEPS), timer.seconds["measuring the residual"]


def _read_and_write(source: Path, target: Path) -> float:
    """Give the seconds of reading all frames and of writing as many results, hashed and checked as the command does."""
    started = time.perf_counter()
    for path in source.iterdir():
        image = read_image(path)
        planned = plan_output(
            target / path.name,
            image,
            n_channels=1,
            output_dtype=None,
            force=False,
            make_folder=True,
        )
        # Divided, so that they have as many digits as results, which are not compressed.
        planned.prepare(image.values / 3).write({})
    return time.perf_counter() - started


def _invert(path: Path, source: str, output: str, options: list[str]) -> None:
    words = ["invert", str(path / source), "--kernel", KERNEL, "-o", str(path / output), "--quiet", *options]
    done = subprocess.run([sys.executable, "-m", "deconv_cli", *words], cwd=ROOT, capture_output=True, check=False)
    if done.returncode not in (0, 3):
        raise RuntimeError(done.stderr.decode())


def report(outcomes: dict[str, Figures]) -> Report:
    """Hold the figures against the targets, and lay them out."""
    targets = [
        Target(f"{name}: time a file, in the solver's", LIMIT, _in_solvers(one)) for name, one in outcomes.items()
    ]
    columns = [
        column("files", "n_files", count),
        column("solver alone", "solver_s", seconds),
        column("tests of the residual", "measuring_s", seconds),
        column("reading and writing", "files_s", seconds),
        column("command, a file", "command_s", seconds),
        ("in the solver's time", lambda figures: times(_in_solvers(figures))),
        column("a process for one file", "alone_s", seconds),
    ]
    title = (
        "Frames of 512 × 512 in 16-bit TIFF, seen through a Gaussian of σ 1.5 with noise: the solver on frames in "
        "memory (choosing λ, building and solving), the tests alone, the files alone, and the whole command."
    )
    return Report("Many files", targets, [table(title, "settings", outcomes, columns)])


def _in_solvers(figures: Figures) -> float | None:
    return ratio(number(figures, "command_s"), number(figures, "solver_s"))
