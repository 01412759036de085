"""The unknown border of stacks: what does the exact answer cost, in FFT filters of the stack's torus and in stacks?"""

from __future__ import annotations

import torch
from torch import Tensor

import deconv_cli
from benchmarks import problems
from benchmarks.measuring import Case, Figures, Scale, peak_memory, timed
from benchmarks.printing import Report, Target, column, count, memory, number, ratio, seconds, small, table, times

LAMBDA = 1e-3
TOLERANCE = 1e-6
LARGE = "large"
GROWTH = "growth"
MIN_STACKS = 24.0
"""Stacks that must fit into memory before a large one is tried."""


def cases(scale: Scale) -> list[Case]:
    """List what is measured."""
    size, taps = scale.pick([64, 512, 512], [8, 20, 20]), scale.pick([31, 25, 25], [5, 3, 3])
    n_bytes = MIN_STACKS * 4 * scale.pick(64 * 512 * 512, 1)
    large = [
        Case(f"{LARGE}: {name}", solved, {"shape": name, "size": size, "taps": taps, "lam": LAMBDA}, n_bytes=n_bytes)
        for name in KERNELS
    ]
    growth = [
        Case(f"{GROWTH}: {n}³, λ = {lam:g}", solved, {"shape": "ball", "size": [n] * 3, "taps": taps, "lam": lam})
        for n in scale.pick((32, 64, 128), (8, 12))
        for lam in (1e-2, 1e-3, 1e-4)
    ]
    return [*large, *growth]


def solved(shape: str, size: list[int], taps: list[int], lam: float) -> Figures:
    """Measure the exact answer, from the kernel to the estimate, and the filter that treats the stack as a torus."""
    kernel, y = KERNELS[shape](taps).float(), _photograph(KERNELS[shape](taps), size)
    settings = {"boundary": "unknown", "lam": lam, "dimensions": 3, "tolerance": TOLERANCE}
    filter_s, _ = timed(lambda: problems.one_shot_filter(y, kernel, lam))
    with peak_memory() as peak:
        solve_s, solution = timed(
            lambda: deconv_cli.pseudo_inverse(kernel, input_size=tuple(size), **settings).solve(y)
        )
    return {
        "filter_s": filter_s,
        "solve_s": solve_s,
        "certificate": solution.certificate,
        "n_iterations": solution.n_iterations,
        "peak_bytes": peak.n_bytes,
        "stack_bytes": y.numel() * y.element_size(),
    }


def report(outcomes: dict[str, Figures]) -> Report:
    """Hold the figures against the targets, and lay them out."""
    large, growth = (
        {name.removeprefix(f"{part}: "): figures for name, figures in outcomes.items() if name.startswith(part)}
        for part in (LARGE, GROWTH)
    )
    targets = [
        target
        for name, figures in large.items()
        for target in (
            Target(f"{name}: certificate", TOLERANCE, number(figures, "certificate")),
            Target(f"{name}: time, in one-shot FFT filters", 40, _in_filters(figures)),
            Target(f"{name}: peak memory beside the data, in stacks", 14, _in_stacks(figures)),
        )
    ]
    columns = [
        column("iterations", "n_iterations", count),
        column("certificate", "certificate", small),
        column("build and solve", "solve_s", seconds),
        column("one-shot filter", "filter_s", seconds),
        ("in filters", lambda figures: times(_in_filters(figures))),
        column("peak memory", "peak_bytes", memory),
        ("in stacks", lambda figures: times(_in_stacks(figures))),
    ]
    tables = [
        table(
            f"64 × 512 × 512 in single precision, seen through 31 × 25 × 25 taps, λ = {LAMBDA:g}; the filter treats "
            "the same stack as a torus, and its time includes building it.",
            "kernel",
            large,
            columns,
        ),
        table("Cubes, seen through a ball of 31 × 25 × 25 taps.", "size", growth, columns),
    ]
    return Report("The border of stacks", targets, tables)


def _in_filters(figures: Figures) -> float | None:
    return ratio(number(figures, "solve_s"), number(figures, "filter_s"))


def _in_stacks(figures: Figures) -> float | None:
    return ratio(number(figures, "peak_bytes"), number(figures, "stack_bytes"))


def _gaussian(taps: list[int]) -> Tensor:
    return _unit_sum(torch.exp(-(3.5**2) / 2 * _squared_radius(taps)))


def _ball(taps: list[int]) -> Tensor:
    return _unit_sum((_squared_radius(taps) <= 1).double())


def _random(taps: list[int]) -> Tensor:
    return _unit_sum(torch.rand(taps, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


KERNELS = {"Gaussian": _gaussian, "ball": _ball, "random taps": _random}


def _squared_radius(taps: list[int]) -> Tensor:
    """Compute the squared distance from the center, 1 at the middle of each face, shape `taps`."""
    lines = [(2 * torch.arange(n, dtype=torch.float64) - (n - 1)) / n for n in taps]
    axes = torch.meshgrid(*lines, indexing="ij")
    return torch.stack(axes).square().sum(0)


def _unit_sum(taps: Tensor) -> Tensor:
    return taps / taps.sum()


def _photograph(kernel: Tensor, size: list[int]) -> Tensor:
    """Photograph points of light on a dim ground, of a scene larger than the frame, with the noise of counts."""
    generator = torch.Generator().manual_seed(0)
    scene = torch.full([n + k - 1 for n, k in zip(size, kernel.shape, strict=True)], 5.0)
    scene += 2000 * torch.rand(scene.shape, generator=generator) * (torch.rand(scene.shape, generator=generator) < 2e-3)
    seen = deconv_cli.forward(scene[None], kernel.float(), padding="valid", dimensions=3)
    return torch.poisson(seen.clamp_min(0), generator=generator)
