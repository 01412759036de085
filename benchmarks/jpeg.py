"""Are λ, the weight of the total variation and the predicted error right where the noise is that of a JPEG file?

Photographs that come with scikit-image and matplotlib are blurred by four kernels as parts of larger scenes, noised at
one of four levels, compressed at one of three qualities, and read again. What the automatic choice loses to the best λ
by the truth stands beside what it loses where the noise is taken for white. The total variation, which takes a hundred
times as long, is tried for one kernel of each photograph. Constants of this package were set on four other photographs:
camera, coffee, chelsea and motorcycle.
"""

from __future__ import annotations

import io
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import deconv_cli
from benchmarks import choice, problems
from benchmarks.measuring import Case, Figures, Scale
from benchmarks.printing import Report, Table, Target, column, number, table

SIZE = 144
NOISES = (0.7, 1.5, 3.0, 6.0)
"""Standard deviations in units of 8-bit samples."""
QUALITIES = (75, 85, 95)
LAMBDAS = tuple(10.0 ** (k / 2) for k in range(-10, 3))
WEIGHTS = tuple(10.0 ** (k / 3) for k in range(-3, 4))
TV_SIZE = 96
TV_TOLERANCE = 1e-3
KERNELS = ("Gaussian", "disk", "motion", "anisotropic")
PHOTOGRAPHS = {
    "astronaut": "skimage/data/astronaut.png",
    "rocket": "skimage/data/rocket.jpg",
    "coins": "skimage/data/coins.png",
    "moon": "skimage/data/moon.png",
    "brick": "skimage/data/brick.png",
    "grass": "skimage/data/grass.png",
    "gravel": "skimage/data/gravel.png",
    "hubble": "skimage/data/hubble_deep_field.jpg",
    "retina": "skimage/data/retina.jpg",
    "ihc": "skimage/data/ihc.png",
    "clock": "skimage/data/clock_motion.png",
    "hopper": "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
}
WAYS = ("auto", "white")


def cases(scale: Scale) -> list[Case]:
    """List what is measured: every photograph under every kernel, with noises and qualities in turn."""
    names = scale.pick(list(PHOTOGRAPHS), ["astronaut"])
    kernels = scale.pick(KERNELS, KERNELS[:1])
    return [
        Case(
            f"{name}, {kernel}",
            restored,
            {
                "name": name,
                "kernel": kernel,
                "noise": NOISES[(row + column) % len(NOISES)],
                "quality": QUALITIES[(row + 2 * column) % len(QUALITIES)],
                "size": scale.pick(SIZE, 96),
                "has_variation": row % len(KERNELS) == column,
            },
            "skimage",
        )
        for row, name in enumerate(names)
        for column, kernel in enumerate(kernels)
    ]


def restored(name: str, kernel: str, noise: float, quality: int, size: int, *, has_variation: bool) -> Figures:
    """Measure one photograph, kernel, size of the noise and quality."""
    torch.set_num_threads(1)  # the pictures are small
    taps = choice._kernel(kernel)
    y, truth = _compressed(name, taps, noise, quality, size)
    best = _best(y, taps, truth)
    figures: Figures = {"noise": noise, "quality": quality, "best": best}
    for way in WAYS:
        known = truth if way == "auto" else None
        result = deconv_cli.invert(y, taps, defaults="picture", noise=way, truth=known)
        figures[f"{way}"] = best - _psnr(result.image, truth)
        for low, high in choice.ERROR_BANDS if result.predicted_error is not None else ():
            figures[f"predicted, {low}"] = choice._error_ratio(result.predicted_error.bands, low, high)
    return figures | (_of_variation(y, taps, truth) if has_variation else {})


def _of_variation(y: Tensor, taps: Tensor, truth: Tensor) -> Figures:
    """Measure what the automatic weight loses to the best one, on a piece."""
    y, truth = (image[..., :TV_SIZE, :TV_SIZE].contiguous() for image in (y, truth))
    options: dict[str, Any] = {"defaults": "picture", "prior": "tv", "tolerance": TV_TOLERANCE}
    best = max(_psnr(deconv_cli.invert(y, taps, weight=w, **options).image, truth) for w in WEIGHTS)
    return {f"tv {way}": best - _psnr(deconv_cli.invert(y, taps, noise=way, **options).image, truth) for way in WAYS}


def report(outcomes: dict[str, Figures]) -> Report:
    """Compare."""
    known = {name: figures for name, figures in outcomes.items() if "failed" not in figures}

    def values(what: str) -> list[float]:
        return [float(figures[what]) for figures in known.values() if what in figures]

    ratios = [ratio for low, _ in choice.ERROR_BANDS for ratio in values(f"predicted, {low}")]
    losses = {way: values(way) for way in WAYS}
    of_tv = {way: values(f"tv {way}") for way in WAYS}
    share = 100 * choice._share_within(ratios) if known else None
    targets = [
        Target("automatic λ: dB lost to the best λ, median", 0.5, statistics.median(losses["auto"]) if known else None),
        Target("automatic λ: dB lost to the best λ, at worst", 1.5, max(losses["auto"], default=None)),
        Target("total variation: dB lost to the best weight, at worst", 1.0, max(of_tv["auto"], default=None)),
        Target("predicted error: bands within a quarter", 85.0, share, is_floor=True, unit=" %"),
    ]
    rows = [
        [
            label,
            *(f"{statistics.median(found):.2f} / {max(found):.2f} dB" for found in (losses[way], of_tv[way])),
        ]
        for way, label in zip(WAYS, ("found out from the data", "taken for white"), strict=True)
        if known
    ]
    tables = [
        Table(
            "Losses to the best λ and to the best weight of the total variation, median / at worst.",
            ["the noise is", "λ", "total variation"],
            rows,
        ),
        table(
            "Each photograph and kernel: dB lost to the best λ, the noise found out from the data or taken for white; "
            "and the predicted error over the real one, in three bands.",
            "photograph, kernel",
            outcomes,
            [
                *(column(name, name, lambda value: f"{value:g}") for name in ("noise", "quality")),
                column("found out", "auto", _decibels),
                column("white", "white", _decibels),
                ("predicted / real", _bands),
            ],
        ),
    ]
    return Report("JPEG files", targets, tables)


def _decibels(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} dB"


def _bands(figures: Figures) -> str:
    return " / ".join(f"{number(figures, f'predicted, {low}') or 0.0:.2f}" for low, _ in choice.ERROR_BANDS)


def _best(y: Tensor, taps: Tensor, truth: Tensor) -> float:
    """Find the largest PSNR that any λ gives, in steps of a sixth of a decade."""

    def psnr_of(lam: float) -> float:
        return _psnr(deconv_cli.invert(y, taps, defaults="picture", lam=lam).image, truth)

    found = {lam: psnr_of(lam) for lam in LAMBDAS}
    best = max(found, key=lambda lam: found[lam])
    return max(found[best], psnr_of(best * 10 ** (1 / 6)), psnr_of(best / 10 ** (1 / 6)))


def _psnr(estimate: Tensor, truth: Tensor) -> float:
    return problems.psnr(estimate / 255, truth / 255)


def _compressed(name: str, taps: Tensor, noise: float, quality: int, size: int) -> tuple[Tensor, Tensor]:
    """See the middle of a scene in a JPEG file: the data of a frame in uint8, and the truth within it."""
    package, _, path = PHOTOGRAPHS[name].partition("/")
    module = __import__(package)
    picture = Image.open(Path(module.__file__ or "").parent / path).convert("L")
    scene = torch.from_numpy(np.asarray(picture, dtype=np.float32))[None]
    rows, columns = taps.shape
    top, left = ((n - size - k) // 2 for n, k in zip(scene.shape[1:], taps.shape, strict=True))
    piece = scene[:, top : top + size + rows - 1, left : left + size + columns - 1].contiguous()
    blurred = deconv_cli.forward(piece, taps, padding="valid")
    noised = blurred + noise * torch.randn(blurred.shape, generator=torch.Generator().manual_seed(0))
    file = io.BytesIO()
    Image.fromarray(noised[0].round().clamp(0, 255).byte().numpy()).save(file, "JPEG", quality=quality)
    y = torch.from_numpy(np.array(Image.open(file)))[None]
    top, left = top + (rows - 1) // 2, left + (columns - 1) // 2
    return y, scene[:, top : top + size, left : left + size]
