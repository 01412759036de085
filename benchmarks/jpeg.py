"""Are λ, the weight of the total variation and the predicted error right where the noise is that of a JPEG file?

Photographs that come with scikit-image and matplotlib are blurred by four kernels as parts of larger scenes, noised at
four levels, compressed, and read again. What the automatic choice loses to the best λ by the truth stands beside what
it loses where the noise is taken for white. Constants of this package were set on four other photographs: camera,
coffee, chelsea and motorcycle.
"""

from __future__ import annotations

import io
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import deconv_cli
from benchmarks import choice, problems
from benchmarks.measuring import Case, Figures, Scale
from benchmarks.printing import Report, Table, Target, number, table

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
    """List what is measured."""
    names = scale.pick(list(PHOTOGRAPHS), ["astronaut"])
    kernels = scale.pick(KERNELS, KERNELS[:1])
    settings = {"size": scale.pick(SIZE, 96), "n_noises": scale.pick(len(NOISES), 1)}
    return [
        Case(f"{name}, {kernel}", restored, {"name": name, "kernel": kernel} | settings, "skimage")
        for name in names
        for kernel in kernels
    ]


def restored(name: str, kernel: str, size: int, n_noises: int) -> Figures:
    """Measure one photograph and one kernel: every noise with one of the qualities, in turn."""
    torch.set_num_threads(1)  # the pictures are small
    taps = choice._kernel(kernel)
    figures: Figures = {}
    for turn, noise in enumerate(NOISES[:n_noises]):
        quality = QUALITIES[(turn + len(name) + len(kernel)) % len(QUALITIES)]
        y, truth = _compressed(name, taps, noise, quality, size)
        best = _best(y, taps, truth)
        figures[f"{noise}: quality"], figures[f"{noise}: best"] = quality, best
        for way in WAYS:
            known = truth if way == "auto" else None
            result = deconv_cli.invert(y, taps, defaults="picture", noise=way, truth=known)
            figures[f"{noise}: {way}"] = best - _psnr(result.image, truth)
            for low, high in choice.ERROR_BANDS if result.predicted_error is not None else ():
                ratio = choice._error_ratio(result.predicted_error.bands, low, high)
                figures[f"{noise}: predicted, {low}"] = ratio
    # The total variation takes a hundred times as long: a piece, with one noise, for each photograph and kernel.
    noise = NOISES[(len(name) + 2 * len(kernel)) % n_noises]
    pair = _compressed(name, taps, noise, int(figures[f"{noise}: quality"]), size)
    y, truth = (image[..., :TV_SIZE, :TV_SIZE].contiguous() for image in pair)
    options: dict[str, Any] = {"defaults": "picture", "prior": "tv", "tolerance": TV_TOLERANCE}
    best = max(_psnr(deconv_cli.invert(y, taps, weight=w, **options).image, truth) for w in WEIGHTS)
    for way in WAYS:
        figures[f"tv {way}"] = best - _psnr(deconv_cli.invert(y, taps, noise=way, **options).image, truth)
    return figures


def report(outcomes: dict[str, Figures]) -> Report:
    """Compare."""
    known = {name: figures for name, figures in outcomes.items() if "failed" not in figures}

    def values(what: str) -> list[float]:
        return [float(value) for figures in known.values() for key, value in figures.items() if key.endswith(what)]

    ratios = [ratio for low, _ in choice.ERROR_BANDS for ratio in values(f": predicted, {low}")]
    losses = {way: values(f": {way}") for way in WAYS}
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
            "dB lost to the best λ: with the noise found out from the data / taken for white.",
            "photograph, kernel",
            outcomes,
            [(f"σ {noise}", partial(_both, noise)) for noise in NOISES],
        ),
    ]
    return Report("JPEG files", targets, tables)


def _both(noise: float, figures: Figures) -> str:
    return " / ".join(f"{number(figures, f'{noise}: {way}') or 0.0:.2f}" for way in WAYS)


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
