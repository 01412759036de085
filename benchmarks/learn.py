"""Do a learned kernel and learned inverse filters keep up with the closed forms, on photographs they never saw?

Photographs in linear light are blurred as parts of larger scenes, with noise of 1 % of white. Filters are learned from
two of them and restore two others, beside Tikhonov's estimate with λ from the data. A kernel is learned, and fitted,
from one pair, once as it is and once with one sample in fifty dead, and predicts the blurred side of the others.
"""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

import deconv_cli
from benchmarks import problems
from benchmarks.blind import load_scene
from benchmarks.measuring import Case, Figures, Scale, timed
from benchmarks.printing import Report, Table, Target

SEEN, UNSEEN = ("china", "flower"), ("grace hopper", "sample")
KERNELS = ("gaussian:1.5", "disk:3", "motion:9@30")
LUMINANCE = (0.2126, 0.7152, 0.0722)
SIZE, TAPS, FILTERS = 256, 17, 21
NOISE, DEAD = 0.01, 0.02
BAND = 10
"""Pixels along the edges, where filters need what they cannot know: judged apart."""


def cases(scale: Scale) -> list[Case]:
    """List what is measured."""
    size, filters = scale.pick(SIZE, 64), scale.pick(FILTERS, 7)
    kernels = scale.pick(KERNELS, KERNELS[:1])
    settings = [{"kernel": kernel, "size": size} for kernel in kernels]
    return [
        *(Case(f"filters, {s['kernel']}", restored, {**s, "filters": filters}, "sklearn") for s in settings),
        *(Case(f"kernel, {s['kernel']}", found, dict(s), "sklearn") for s in settings),
    ]


def restored(kernel: str, size: int, filters: int) -> Figures:
    """Learn filters from the photographs of one list, and restore those of the other."""
    torch.set_num_threads(1)
    taps = deconv_cli.make_kernel(kernel).double()
    pairs = [_pair(name, taps, size) for name in SEEN]
    bank = deconv_cli.learn_inverse_filters(pairs, (filters, filters)).learning.taps
    figures: Figures = {}
    for name in UNSEEN:
        sharp, blurred = _pair(name, taps, size)
        seconds, filtered = timed(lambda y=blurred: deconv_cli.forward(y, bank, boundary="reflect"))
        longer, tikhonov = timed(
            lambda y=blurred: deconv_cli.invert(y, taps, boundary="unknown", penalty="gradient", lam="auto").image
        )
        for what, image in (("blurred", blurred), ("filters", filtered), ("Tikhonov", tikhonov)):
            inside = (slice(None), slice(BAND, -BAND), slice(BAND, -BAND))
            figures[f"{name}: {what}, inside"] = problems.psnr(image[inside], sharp[inside])
            figures[f"{name}: {what}, edges"] = problems.psnr(image, sharp, BAND)
        figures[f"{name}: times as long"] = longer / seconds
    return figures


def found(kernel: str, size: int) -> Figures:
    """Find a kernel from one pair by learning and by fitting."""
    torch.set_num_threads(1)
    taps = deconv_cli.make_kernel(kernel).double()
    truth = torch.zeros(TAPS, TAPS, dtype=torch.float64)
    rows, columns = ((TAPS - n) // 2 for n in taps.shape)
    truth[rows : rows + taps.shape[0], columns : columns + taps.shape[1]] = taps
    sharp, blurred = _pair(SEEN[0], taps, size)
    dead = torch.rand(blurred.shape, generator=torch.Generator().manual_seed(1)) < DEAD
    broken = torch.where(dead, torch.zeros_like(blurred), blurred)
    fit_s, fit = timed(lambda: deconv_cli.fit_kernel([(sharp, blurred)], truth.shape))
    learn_s, learned = timed(lambda: deconv_cli.learn_kernel([(sharp, blurred)], truth.shape))
    figures: Figures = {
        "learned from fitted": float((learned.taps - fit.taps).norm() / fit.taps.norm()),
        "times as long": learn_s / fit_s,
        "fitted": _miss(fit.taps, truth),
        "fitted, dead samples": _miss(deconv_cli.fit_kernel([(sharp, broken)], truth.shape).taps, truth),
        "huber, dead samples": _miss(
            deconv_cli.learn_kernel([(sharp, broken)], truth.shape, loss=f"huber:{NOISE}").taps, truth
        ),
    }
    for name in UNSEEN:
        other, y = _pair(name, taps, size)
        predicted = deconv_cli.forward(other, learned.taps, boundary="reflect")
        inside = (slice(None), slice(BAND, -BAND), slice(BAND, -BAND))
        figures[f"{name}: left over"] = float((predicted - y)[inside].square().mean().sqrt() / NOISE)
    return figures


def report(outcomes: dict[str, Figures]) -> Report:
    """Compare."""
    known = {name: figures for name, figures in outcomes.items() if "failed" not in figures}
    kernels = {name: figures for name, figures in known.items() if name.startswith("kernel")}
    banks = {name: figures for name, figures in known.items() if name.startswith("filters")}

    def gains(where: str) -> list[float]:
        return [
            float(f[f"{name}: filters, {where}"]) - float(f[f"{name}: Tikhonov, {where}"])
            for f in banks.values()
            for name in UNSEEN
        ]

    differences = [float(figures["learned from fitted"]) for figures in kernels.values()]
    targets = [
        Target("learned kernel from the fitted one, at most", 1e-3, max(differences) if kernels else None),
        Target(
            "filters over Tikhonov inside, median",
            0.0,
            statistics.median(gains("inside")) if banks else None,
            is_floor=True,
            unit=" dB",
            note=f"; {statistics.median(gains('edges')):.2g} dB along the edges" if banks else "",
        ),
    ]
    of_kernels = [
        "learned from fitted", "times as long", "fitted", "fitted, dead samples", "huber, dead samples",
        *(f"{name}: left over" for name in UNSEEN),
    ]  # fmt: skip
    of_banks = [*(f"{what}, {where}" for where in ("inside", "edges") for what in _ESTIMATES), "times as long"]
    tables = [
        Table(
            "Kernels from one pair of 1 % noise: their distance, relative to the fitted one; the time that learning "
            "takes in fits; errors of the taps, relative to the truth; and what the learned one leaves over of "
            "photographs that it never saw, in units of the noise.",
            ["kernel", *of_kernels],
            [[name, *(f"{float(figures[key]):.3g}" for key in of_kernels)] for name, figures in kernels.items()],
        ),
        Table(
            "Filters on photographs that they never saw, PSNR in dB, and the time that Tikhonov's estimate takes, with "
            "the choice of λ, in convolutions by the filters.",
            ["filters", "photograph", *of_banks],
            [
                [case, name, *(f"{float(figures[f'{name}: {key}']):.1f}" for key in of_banks)]
                for case, figures in banks.items()
                for name in UNSEEN
            ],
        ),
    ]
    failures = [[name, str(figures["failed"])] for name, figures in outcomes.items() if "failed" in figures]
    if failures:
        tables.append(Table("Not measured:", ["case", "why"], failures))
    return Report("Learned kernels and filters", targets, tables)


_ESTIMATES = ("blurred", "filters", "Tikhonov")


def _pair(name: str, taps: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Give a photograph `(1, n, n)` and the same blurred as a part of a larger scene, with noise."""
    if name == "sample":
        scene = problems.photograph(size + max(taps.shape) - 1, torch.float64)
    else:
        scene = torch.tensordot(torch.tensor(LUMINANCE, dtype=torch.float64), load_scene(name), dims=1)[None]
    rows, columns = ((n - size - k + 1) // 2 for n, k in zip(scene.shape[1:], taps.shape, strict=True))
    part = scene[:, rows : rows + size + taps.shape[0] - 1, columns : columns + size + taps.shape[1] - 1]
    ((sharp, blurred),) = deconv_cli.simulate_pairs([part], taps, noise=f"gaussian:{NOISE}", seed=len(name))
    return sharp, blurred


def _miss(taps: Tensor, truth: Tensor) -> float:
    return float((taps - truth).norm() / truth.norm())
