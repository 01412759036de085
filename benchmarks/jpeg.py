"""Are λ, the weight of the total variation and the predicted error right where the noise is that of a JPEG file?

Photographs that come with scikit-image and matplotlib are blurred by four kernels as parts of larger scenes, noised at
one of four levels, compressed at one of three qualities, and read again. Levels and qualities take turns, so that 48
files of the 576 that all of them would make are measured, with each level 12 times and each quality 16 times. The
report shows the loss of the automatic λ against the best one by the truth, and with white noise assumed. The
total variation, which takes a hundred times as long, is tried for one kernel of each photograph, with the levels in
turn. Constants of this package were set on other photographs.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import deconv_cli
from benchmarks import choice, problems
from benchmarks.measuring import Case, Figures, Scale
from benchmarks.printing import Report, Table, Target

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
    """List what is measured: every photograph."""
    names = scale.pick(list(PHOTOGRAPHS), ["astronaut"])
    size = scale.pick(SIZE, 96)
    return [Case(name, restored, {"name": name, "number": n, "size": size}, "skimage") for n, name in enumerate(names)]


def restored(name: str, number: int, size: int) -> Figures:
    """Measure one photograph under every kernel, with noises and qualities in turn; the total variation under one."""
    torch.set_num_threads(1)  # the pictures are small
    figures: Figures = {}
    for column, kernel in enumerate(KERNELS):
        noise, quality = NOISES[(number + column) % len(NOISES)], QUALITIES[(number + 2 * column) % len(QUALITIES)]
        taps = choice._kernel(kernel)
        y, truth = _compressed(name, taps, noise, quality, size)
        found = _of_lambda(y, taps, truth)
        if column == (number + number // len(KERNELS)) % len(KERNELS):
            found |= _of_variation(y, taps, truth)
        figures |= {f"{kernel}, {noise:g}, {quality}: {what}": value for what, value in found.items()}
    return figures


def _of_lambda(y: Tensor, taps: Tensor, truth: Tensor) -> Figures:
    """Measure the loss of the automatic λ against the best one, and the accuracy of the predicted error."""
    best = _best(y, taps, truth)
    figures: Figures = {"best": best}
    for way in WAYS:
        known = truth if way == "auto" else None
        result = deconv_cli.invert(y, taps, defaults="picture", noise=way, truth=known)
        figures[way] = best - _psnr(result.image, truth)
        for low, high in choice.ERROR_BANDS if result.predicted_error is not None else ():
            figures[f"predicted, {low}"] = choice._error_ratio(result.predicted_error.bands, low, high)
    return figures


def _of_variation(y: Tensor, taps: Tensor, truth: Tensor) -> Figures:
    """Measure what the automatic weight loses to the best one, on a piece."""
    y, truth = (image[..., :TV_SIZE, :TV_SIZE].contiguous() for image in (y, truth))
    options: dict[str, Any] = {"defaults": "picture", "prior": "tv", "tolerance": TV_TOLERANCE}
    best = max(_psnr(deconv_cli.invert(y, taps, weight=w, **options).image, truth) for w in WEIGHTS)
    return {f"tv {way}": best - _psnr(deconv_cli.invert(y, taps, noise=way, **options).image, truth) for way in WAYS}


def report(outcomes: dict[str, Figures]) -> Report:
    """Compare."""
    known = {name: figures for name, figures in outcomes.items() if "failed" not in figures}

    def values(what: str, under: str = "") -> list[float]:
        """Gather a figure of all cases, or of those under one noise, quality or kernel."""
        return [
            float(value)
            for case, figures in known.items()
            for name, value in figures.items()
            if name.endswith(f": {what}") and under in f", {case}, {name}"
        ]

    def ratios(under: str = "") -> list[float]:
        return [ratio for low, _ in choice.ERROR_BANDS for ratio in values(f"predicted, {low}", under)]

    losses, of_tv = values("auto"), values("tv auto")
    share = 100 * choice._share_within(ratios()) if known else None
    targets = [
        Target("automatic λ: dB lost to the best λ, median", 0.5, statistics.median(losses) if losses else None),
        Target("automatic λ: dB lost to the best λ, at worst", 1.5, max(losses, default=None)),
        Target("total variation: dB lost to the best weight, at worst", 1.0, max(of_tv, default=None)),
        Target("predicted error: bands within a quarter", 85.0, share, is_floor=True, unit=" %"),
    ]
    groups = {
        "all": "",
        **{f"noise {noise:g}": f", {noise:g}, " for noise in NOISES},
        **{f"quality {quality}": f", {quality}: " for quality in QUALITIES},
        **{kernel: f", {kernel}, " for kernel in KERNELS},
    }
    rows = [
        [
            name,
            *(_median_and_worst(values(what, under)) for what in ("auto", "white", "tv auto", "tv white")),
            f"{choice._share_within(ratios(under)):.0%}, {_span(ratios(under))}",
        ]
        for name, under in groups.items()
        if values("auto", under)
    ]
    each = [
        [
            f"{name}, {kernel}",
            *(", ".join(f"{value:.2f} dB" for value in values(what, f", {name}, {kernel}, ")) for what in WAYS),
            " / ".join(f"{value:.2f}" for value in ratios(f", {name}, {kernel}, ")),
        ]
        for name in known
        for kernel in KERNELS
    ]
    failed = [[name, str(figures["failed"]), "", ""] for name, figures in outcomes.items() if "failed" in figures]
    tables = [
        Table(
            f"{len(losses)} files. Losses to the best λ and to the best weight of the total variation, median / at "
            "worst, with the noise estimated from the data and with the noise assumed white; and the predicted "
            "error over the real one: how many bands are within a quarter, and the median and the range of all.",
            ["files", "λ, estimated", "λ, white", "tv, estimated", "tv, white", "predicted / real"],
            rows,
        ),
        Table(
            "Each photograph and kernel: losses to the best λ; the predicted error over the real one in three bands.",
            ["photograph, kernel", "λ, estimated", "λ, white", "predicted / real"],
            each + failed,
        ),
    ]
    return Report("JPEG files", targets, tables)


def _median_and_worst(losses: Sequence[float]) -> str:
    return f"{statistics.median(losses):.2f} / {max(losses):.2f} dB" if losses else "–"


def _span(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}"


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
