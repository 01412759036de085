"""What does the prior for photographs gain, on photographs that neither its training nor its tuning has seen?

The judged photographs are those of Debian's package budgie-backgrounds (CC0), downloaded as the training downloads its
own. Each is shrunk until its pixels are clean, cropped, and blurred in light by six kernels as a part of a larger
scene. JPEG files have noise of 1 to 3 gray levels before they are compressed at a quality of 80 to 95, in turns; linear
files have white noise of 0.4 % or 2 %. Two kernels of each photograph also compare the expected error with the real
one, in three bands of distance from the edge. The constants of the prior and of its expected error were set on
photographs of scikit-image and scikit-learn. scikit-image's `wiener` and `richardson_lucy` get the picture mirrored by
hand, in stored values or in light, and the number that gives the best PSNR against the truth.
"""

from __future__ import annotations

import io
import statistics
import time
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import deconv_cli
from benchmarks import choice, problems
from benchmarks.measuring import Case, Figures, Scale
from benchmarks.printing import Report, Table, Target
from deconv_cli.tone_curve import ToneCurve
from training.photographs import unpack_package

PACKAGE = "budgie-backgrounds"
PHOTOGRAPHS = (
    *(
        "beacon-street-sunset",
        "blue-periwinkle",
        "canyon-wren",
        "casa-mila",
        "extreme-desert-hike",
        "high-trestle-trail",
    ),
    *("lake-sherburne", "oakland-zoo-otters", "perched-osprey", "piazza-gae-aulenti", "roman-colosseum"),
    *("singaporean-cityscape", "tea-gardens"),
)
SHRUNKEN_WIDTH = 960
SIZE = (400, 440)
KERNELS = ("disk:2.5", "disk:4.3", "motion:9@20", "motion:15@70", "gaussian:1.3", "gaussian:2.3")
NOISES = (1.0, 1.5, 2.0, 3.0)
"""Standard deviations before compression, in gray levels."""
QUALITIES = (80, 85, 90, 95)
LINEAR_NOISES = (0.004, 0.02)
ESTIMATED = ", estimated"
"""After the kernel that made a file, where the one that was found in the file restores it."""
ERROR_FACTOR = 1.5
"""An expected error is right if it is within this factor of the real one."""
WAYS: dict[str, dict[str, Any]] = {
    "photo": {"prior": "photo"},
    "quadratic": {"prior": "quadratic"},
    "Richardson–Lucy": {"method": "richardson-lucy"},
    "total variation": {"prior": "tv"},
}
PEERS = {
    "scikit-image wiener": ("wiener", tuple(10 ** (k / 2) for k in range(-8, 3))),
    "scikit-image richardson_lucy": ("richardson_lucy", (5, 10, 20, 40)),
}
"""Functions of scikit-image, with the balances, or numbers of iterations, of which each picture gets the best."""


def cases(scale: Scale) -> list[Case]:
    """List what is measured: every photograph, as JPEG and as a linear file."""
    names = scale.pick(PHOTOGRAPHS, PHOTOGRAPHS[:1])
    size = scale.pick(SIZE, (96, 136))
    found = []
    for kind, function in (("JPEG", of_jpeg), ("linear", of_linear)):
        for number, name in enumerate(names):
            settings = {"name": name, "number": number, "size": list(size)}
            found.append(Case(f"{kind}: {name}", function, settings))
    return found


def of_jpeg(name: str, number: int, size: tuple[int, int]) -> Figures:
    """Restore JPEG files of one photograph, the kernel known, and for half of them found in the file."""
    torch.set_num_threads(1)
    curve = ToneCurve.srgb(255.0)
    figures: Figures = {}
    for column, formula in enumerate(KERNELS):
        taps = deconv_cli.make_kernel(formula)
        noise, quality = NOISES[(number + column) % len(NOISES)], QUALITIES[(number + 2 * column) % len(QUALITIES)]
        light, truth = _blurred(name, taps, size)
        generator = torch.Generator().manual_seed(number)
        stored = curve.to_stored(light) + noise * torch.randn(light.shape, generator=generator)
        y, table = _compressed(stored, quality)
        figures[f"{formula}: blurred"] = _psnr(y, truth)
        figures |= _restored(formula, y, taps, truth, {"tone_curve": curve})
        if (number + column) % 3 == 0:
            figures |= _expected(formula, y, taps, truth, {"tone_curve": curve})
        if (number + column) % 2:
            continue
        estimate = deconv_cli.estimate_kernel(y, tone_curve=curve, jpeg_table=table)
        if estimate.found:
            taps = deconv_cli.make_kernel(estimate.text)
            found = f"{formula}{ESTIMATED}"
            figures[f"{found}: blurred"] = figures[f"{formula}: blurred"]
            figures |= _restored(found, y, taps, truth, {"tone_curve": curve})
    return figures


def of_linear(name: str, number: int, size: tuple[int, int]) -> Figures:
    """Restore linear files of one photograph with white noise."""
    torch.set_num_threads(1)
    figures: Figures = {}
    for column, formula in enumerate(KERNELS):
        taps = deconv_cli.make_kernel(formula)
        noise = LINEAR_NOISES[(number + column) % len(LINEAR_NOISES)]
        light, truth = _blurred(name, taps, size)
        truth = ToneCurve.srgb(255.0).to_light(truth)
        y = light + 255 * noise * torch.randn(light.shape, generator=torch.Generator().manual_seed(number))
        figures[f"{formula}: blurred"] = _psnr(y, truth)
        ways = [way for way in WAYS if way != "Richardson–Lucy"]
        figures |= _restored(formula, y, taps, truth, {"light": "stored"}, ways)
        if (number + column) % 3 == 0:
            figures |= _expected(formula, y, taps, truth, {"light": "stored"})
    return figures


def _restored(
    formula: str, y: Tensor, taps: Tensor, truth: Tensor, options: dict[str, Any], ways: list[str] | None = None
) -> Figures:
    figures: Figures = {}
    for way in ways or WAYS:
        began = time.process_time()
        result = deconv_cli.invert(y, taps, defaults="picture", **WAYS[way], **options)
        figures[f"{formula}: {way}"] = _psnr(result.image, truth)
        figures[f"{formula}: {way}, processor_s"] = time.process_time() - began
    for peer in PEERS:
        figures[f"{formula}: {peer}"] = _best_of_peer(peer, y, taps, truth, options.get("tone_curve"))
    return figures


def _best_of_peer(peer: str, y: Tensor, taps: Tensor, truth: Tensor, curve: ToneCurve | None) -> float:
    """Return the best PSNR of a function of scikit-image, over its numbers, in stored values and in light."""
    from skimage import restoration

    function, numbers = PEERS[peer]
    restore, psf, reach = getattr(restoration, function), taps.flip(0, 1).double().numpy(), max(taps.shape)
    found = []
    for as_light in (False,) if curve is None else (False, True):
        samples = curve.to_light(y) if as_light and curve is not None else y
        padded = np.pad(samples.double().numpy() / 255, ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
        for number in numbers:
            restored = np.stack([restore(channel.clip(0, None), psf, number, clip=False) for channel in padded])
            image = 255 * torch.from_numpy(restored[:, reach:-reach, reach:-reach])
            stored = curve.to_stored(image.clamp(min=0)) if as_light and curve is not None else image
            found.append(_psnr(stored, truth))
    return max(found)


def _expected(formula: str, y: Tensor, taps: Tensor, truth: Tensor, options: dict[str, Any]) -> Figures:
    """Divide the expected error of the prior for photographs by the real one, in each band."""
    result = deconv_cli.invert(y, taps, defaults="picture", prior="photo", truth=truth, **options)
    assert result.predicted_error is not None
    bands = result.predicted_error.bands
    return {
        f"{formula}: expected / real from {low} pixels": choice._error_ratio(bands, low, high)
        for low, high in ((0, 4), (4, 16), (16, max(truth.shape)))
    }


def report(outcomes: dict[str, Figures]) -> Report:
    """Compare."""
    tables: list[Table] = []
    targets: list[Target] = []
    columns = [*WAYS, *PEERS]
    medians: list[list[str]] = []
    for kind, over_quadratic, over_best, least, mark in (
        ("JPEG", 1.5, 1.0, -0.2, ""),
        ("JPEG", 1.5, 1.0, -0.2, ESTIMATED),
        ("linear", 1.8, 1.0, -0.1, ""),
    ):
        gains: list[float] = []
        margins: list[float] = []
        levels: dict[str, list[float]] = {}
        rows: list[list[str]] = []
        for case, figures in outcomes.items():
            if not case.startswith(kind):
                continue
            if "failed" in figures:
                rows.append([case, str(figures["failed"]), *[""] * len(columns)])
            for formula in (f"{kernel}{mark}" for kernel in KERNELS):
                if f"{formula}: photo" not in figures:
                    continue
                found = {way: float(figures[f"{formula}: {way}"]) for way in columns if f"{formula}: {way}" in figures}
                others = max(value for way, value in found.items() if way != "photo")
                gains.append(found["photo"] - found["quadratic"])
                margins.append(found["photo"] - others)
                for way, value in ({"blurred": float(figures[f"{formula}: blurred"])} | found).items():
                    levels.setdefault(way, []).append(value)
                cells = [f"{found[way]:.2f}" if way in found else "–" for way in columns]
                rows.append([f"{case}, {formula}", f"{float(figures[f'{formula}: blurred']):.2f}", *cells])
        what = f"{kind}, kernels {'found in the file' if mark else 'known'}"
        targets += [
            Target(f"{what}: dB over the quadratic prior, median", over_quadratic, _median(gains), is_floor=True),
            Target(f"{what}: dB over the best of the others, median", over_best, _median(margins), is_floor=True),
            Target(f"{what}: dB over the best of the others, least", least, min(margins, default=None), is_floor=True),
        ]
        unit = "stored values" if kind == "JPEG" else "light"
        middle = [f"{statistics.median(levels[way]):.2f} dB" if way in levels else "–" for way in ("blurred", *columns)]
        medians.append([f"{what}, {len(rows)} files", *middle])
        tables.append(Table(f"{what}: PSNR of {unit} in dB.", ["file", "blurred", *columns], rows))
    ratios = [
        float(value) for figures in outcomes.values() for name, value in figures.items() if "expected / real" in name
    ]
    share = 100 * sum(1 / ERROR_FACTOR <= ratio <= ERROR_FACTOR for ratio in ratios) / max(len(ratios), 1)
    targets.append(
        Target(
            f"expected error within {ERROR_FACTOR} in % of {len(ratios)} bands",
            85.0,
            share if ratios else None,
            is_floor=True,
            unit=" %",
        )
    )
    summary = Table(
        "Median PSNR, in stored values for JPEG and in light for linear files.", ["files", "blurred", *columns], medians
    )
    return Report("Photographs", targets, [summary, *tables])


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _psnr(estimate: Tensor, truth: Tensor) -> float:
    return problems.psnr(estimate.float().clamp(0, 255) / 255, truth / 255)


def _blurred(name: str, taps: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Blur a part of a scene in light; light and the stored values of the truth, shape `(3, *size)`, white 255."""
    root = unpack_package(PACKAGE, Path(gettempdir()) / "deconv-photographs")
    with Image.open(root / f"usr/share/backgrounds/budgie/{name}.jpg") as opened:
        picture = opened.convert("RGB")
    height = round(picture.height * SHRUNKEN_WIDTH / picture.width)
    picture = picture.resize((SHRUNKEN_WIDTH, height), Image.Resampling.HAMMING)
    scene = torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1)
    top, left = ((n - wanted) // 2 for n, wanted in zip(scene.shape[1:], size, strict=True))
    before = [(k - 1) // 2 for k in taps.shape[-2:]]
    rows, columns = (wanted + k - 1 for wanted, k in zip(size, taps.shape[-2:], strict=True))
    piece = scene[:, top - before[0] : top - before[0] + rows, left - before[1] : left - before[1] + columns]
    light = ToneCurve.srgb(255.0).to_light(piece.contiguous())
    blurred = deconv_cli.forward(light, taps, padding="valid")
    return blurred, scene[:, top : top + size[0], left : left + size[1]].contiguous()


def _compressed(stored: Tensor, quality: int) -> tuple[Tensor, Tensor]:
    """Store a picture as JPEG; returns the samples of the file, and the divisors of its luma."""
    file = io.BytesIO()
    values = stored.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(values).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        table = torch.tensor(image.quantization[0]).reshape(8, 8)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), table
