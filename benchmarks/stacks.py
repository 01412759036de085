"""What do stacks gain over the three-dimensional tools of microscopists, and at what cost?

Richardson–Lucy on a large stack: the time of an iteration, and what is wrong in the outer planes after fifty. Then a
stack of cells with the noise of few counts, restored by ours with its defaults, and by the others with the best number
of iterations.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import deconv_cli
from benchmarks import problems
from benchmarks.measuring import Case, Figures, Scale, peak_memory
from benchmarks.printing import Report, Target, column, count, decibels, memory, number, ratio, seconds, small, table

Size = tuple[int, int, int]
Restore = Callable[[Tensor, Tensor, int], Tensor]
"""Takes counts `(D, H, W)`, a point-spread function and a number of iterations, and gives an estimate `(D, H, W)`."""

PHOTONS = 100.0
"""Of brightness 1 in the scene, whose points reach about 3 of it, and whose ground is 0.05."""
BRIGHT_PHOTONS = 1000.0
N_ITERATIONS = 50
NUMBERS = (5, 10, 15, 20, 30, 40, 50, 60, 80)
OURS = "deconv, Richardson–Lucy"
KNOWN = f"{OURS}, the surroundings photographed too"
"""The frame is then the middle of a larger one: what is wrong in its outer planes is not its border's."""
MIN_FLOATS = 40.0
"""Stacks of the full size in single precision that must fit into memory before the large one is tried."""

SPEED = f"{N_ITERATIONS} iterations"
QUALITY = "few counts"


@dataclass(frozen=True)
class Method:
    """A way to restore a stack.

    Attributes:
        restore: what it does.
        peer: the package that it needs beside this one.
        takes_number: whether it needs a number of iterations.
    """

    restore: Restore
    peer: str | None = None
    takes_number: bool = True


def cases(scale: Scale) -> list[Case]:
    """List what is measured."""
    large = {"size": scale.pick([64, 512, 512], [8, 24, 24]), "taps": scale.pick([31, 25, 25], [5, 5, 5])}
    stack = {"size": scale.pick([32, 256, 256], [8, 24, 24]), "taps": scale.pick([15, 15, 15], [5, 5, 5])}
    n_bytes = MIN_FLOATS * 4 * scale.pick(64 * 512 * 512, 1)
    numbers = {"n_most": scale.pick(NUMBERS[-1], 10)}
    return [
        *(
            Case(
                f"{SPEED}: {name}",
                fifty,
                {"name": name, "n_iterations": scale.pick(N_ITERATIONS, 2)} | large,
                METHODS[name].peer if name in METHODS else None,
                n_bytes,
            )
            for name in (OURS, KNOWN, *PEERS)
        ),
        Case(f"{QUALITY}: as it came, blurred", blurred, stack),
        *(
            Case(f"{QUALITY}: {name}", restored, {"name": name} | numbers | stack, method.peer)
            for name, method in METHODS.items()
        ),
    ]


def fifty(name: str, n_iterations: int, size: list[int], taps: list[int]) -> Figures:
    """Measure this number of iterations on a bright stack: the time of one, and the error in the outer planes."""
    margins = [k // 2 if name == KNOWN else 0 for k in taps]
    frame = tuple(slice(margin, margin + n) for n, margin in zip(size, margins, strict=True))
    wide = [n + 2 * margin for n, margin in zip(size, margins, strict=True)]
    psf, truth, counts = _photograph(wide, taps, BRIGHT_PHOTONS)
    deconv_cli.keep_freed_memory()
    restore = _richardson_lucy if name in (OURS, KNOWN) else METHODS[name].restore
    with peak_memory() as peak:
        started = time.perf_counter()
        estimate = restore(counts, psf, n_iterations)
        elapsed = time.perf_counter() - started
    estimate, truth = estimate[frame], truth[frame]
    outer = _outer_planes(truth, taps)
    return {
        "n_iterations": n_iterations,
        "iteration_s": elapsed / n_iterations,
        "plane_error": problems.relative_error(estimate[outer], truth[outer]),
        "peak_bytes": peak.n_bytes,
    }


def blurred(size: list[int], taps: list[int]) -> Figures:
    """Measure the error of the data themselves."""
    _, truth, counts = _photograph(size, taps, PHOTONS)
    return _quality(counts, truth, taps)


def restored(name: str, n_most: int, size: list[int], taps: list[int]) -> Figures:
    """Measure a restoration, of the others with the numbers of iterations that suit inside and outer planes best."""
    psf, truth, counts = _photograph(size, taps, PHOTONS)
    method = METHODS[name]
    if not method.takes_number:
        return _quality(method.restore(counts, psf, 0), truth, taps)
    numbers = [n for n in NUMBERS if n <= n_most]
    found = {n: _quality(method.restore(counts, psf, n), truth, taps) for n in numbers}
    inside = max(numbers, key=lambda n: found[n]["inside_db"])
    planes = max(numbers, key=lambda n: found[n]["planes_db"])
    return {
        "inside_db": found[inside]["inside_db"],
        "planes_db": found[planes]["planes_db"],
        "n_inside": inside,
        "n_planes": planes,
    }


def report(outcomes: dict[str, Figures]) -> Report:
    """Hold the figures against the targets, and lay them out."""
    speed = {name: figures for name, figures in outcomes.items() if name.startswith(SPEED)}
    quality = {name: figures for name, figures in outcomes.items() if name.startswith(QUALITY)}
    ours = speed.get(f"{SPEED}: {OURS}", {})
    times = [number(speed.get(f"{SPEED}: {name}", {}), "iteration_s") for name in PEERS]
    known = [value for value in times if value is not None]
    fastest = min(known) if len(known) == len(times) else None
    targets = [
        Target("an iteration, as a part of the fastest peer's", 1, ratio(number(ours, "iteration_s"), fastest)),
        *(
            Target(
                f"error in the outer planes, as a part of that of {name}",
                0.5,
                ratio(number(ours, "plane_error"), number(speed.get(f"{SPEED}: {name}", {}), "plane_error")),
            )
            for name in PEERS
        ),
        *(
            Target(f"few counts, {where}: above {name} at its best", 0, _gain(quality, name, key), True, " dB")
            for where, key in (("inside", "inside_db"), ("outer planes", "planes_db"))
            for name in PEERS
        ),
    ]
    tables = [
        table(
            f"Cells of {BRIGHT_PHOTONS:g} counts, 64 × 512 × 512 in single precision, seen through 31 × 25 × 25 taps: "
            f"{N_ITERATIONS} iterations of Richardson–Lucy, with all that goes before them.",
            "package",
            speed,
            [
                column("an iteration", "iteration_s", seconds),
                column("error, outer planes", "plane_error", small),
                column("peak memory", "peak_bytes", memory),
            ],
        ),
        table(
            f"Cells of {PHOTONS:g} counts, 32 × 256 × 256, seen through 15 × 15 × 15 taps: signal to error inside, and "
            "in the planes that the point-spread function reaches over the frame from.",
            "method",
            quality,
            [
                column("inside", "inside_db", decibels),
                column("iterations", "n_inside", count),
                column("outer planes", "planes_db", decibels),
                column("iterations", "n_planes", count),
            ],
        ),
    ]
    return Report("Stacks, against scikit-image, RedLionfish and ci-deconvolve", targets, tables)


def _gain(quality: dict[str, Figures], name: str, key: str) -> float | None:
    """Compute by how many decibels ours, with its defaults, exceeds another at its best."""
    ours, theirs = (number(quality.get(f"{QUALITY}: {method}", {}), key) for method in (OURS, name))
    return None if ours is None or theirs is None else ours - theirs


def _photograph(size: list[int], taps: list[int], photons: float) -> tuple[Tensor, Tensor, Tensor]:
    """Photograph a scene larger than the frame: the point-spread function, the truth in the frame, and the counts."""
    depth, height, width = size
    psf = problems.microscope_psf((taps[0], taps[1], taps[2]))
    scene = photons * problems.cells((depth + taps[0] - 1, height + taps[1] - 1, width + taps[2] - 1))
    seen = deconv_cli.forward(scene[None], psf.flip(0, 1, 2), dimensions=3, padding="valid")[0].clamp_min(0)
    frame = tuple(slice(k // 2, k // 2 + n) for k, n in zip(taps, size, strict=True))
    counts = torch.poisson(seen, generator=torch.Generator().manual_seed(5))
    return psf.float(), scene[frame].float(), counts.float()


def _outer_planes(truth: Tensor, taps: list[int]) -> Tensor:
    """Mark the planes from which the point-spread function reaches over the frame."""
    reach = taps[0] // 2
    planes = torch.zeros(truth.shape, dtype=torch.bool)
    planes[:reach] = planes[-reach:] = True
    return planes


def _quality(estimate: Tensor, truth: Tensor, taps: list[int]) -> Figures:
    """Compute signal to error in dB, inside and in the outer planes."""
    inside = torch.zeros(truth.shape, dtype=torch.bool)
    inside[tuple(slice(k // 2, n - k // 2) for k, n in zip(taps, truth.shape, strict=True))] = True
    parts = {"inside_db": inside, "planes_db": _outer_planes(truth, taps)}
    return {
        name: float(-20 * torch.log10(torch.tensor(problems.relative_error(estimate[part], truth[part]))))
        for name, part in parts.items()
    }


def _package(**settings: object) -> Restore:
    def restore(counts: Tensor, psf: Tensor, n_iterations: int) -> Tensor:
        del n_iterations
        # A point-spread function is convolved with, taps are correlated with.
        kernel = psf.flip(0, 1, 2)
        return deconv_cli.invert(counts[None], kernel, dimensions=3, boundary="unknown", **settings).image[0]

    return restore


def _richardson_lucy(counts: Tensor, psf: Tensor, n_iterations: int) -> Tensor:
    """Take this number of steps, however well the counts are explained."""
    return _package(method="richardson-lucy", iterations=n_iterations)(counts, psf, 0)


def _skimage(counts: Tensor, psf: Tensor, n_iterations: int) -> Tensor:
    from skimage.restoration import richardson_lucy

    return torch.from_numpy(richardson_lucy(counts.numpy(), psf.numpy(), num_iter=n_iterations, clip=False))


def _red_lionfish(counts: Tensor, psf: Tensor, n_iterations: int) -> Tensor:
    from RedLionfishDeconv import doRLDeconvolutionFromNpArrays

    # Around stacks of even size it centers one of even size alone.
    centered = np.pad(psf.numpy(), [(1, 0)] * 3)
    found = doRLDeconvolutionFromNpArrays(counts.numpy(), centered, niter=n_iterations, method="cpu")
    return torch.from_numpy(found)


def _ci_deconvolve(counts: Tensor, psf: Tensor, n_iterations: int) -> Tensor:
    from core.deconvolve_ci import ci_rl_deconvolve

    found = ci_rl_deconvolve(
        counts.numpy(), psf.numpy(), niter=n_iterations, convergence="fixed", tiling="none", device="cpu"
    )
    return torch.from_numpy(found["result"])


PEERS = {
    "scikit-image": Method(_skimage, "skimage"),
    "RedLionfish": Method(_red_lionfish, "RedLionfishDeconv"),
    "ci-deconvolve": Method(_ci_deconvolve, "ci_deconvolve"),
}
METHODS = {
    OURS: Method(_package(method="richardson-lucy"), takes_number=False),
    "deconv, least squares": Method(_package(lam="auto", penalty="gradient"), takes_number=False),
    **PEERS,
}
