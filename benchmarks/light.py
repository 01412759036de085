"""Is a photograph better restored in linear light or in its samples as they are stored?

Photographs of scikit-image and scikit-learn are turned into light, blurred there as parts of larger scenes, noised as a
sensor does, and written as files of four kinds. Each file is read again and restored both ways, with λ chosen from the
data. The default of `--light` for each kind is what is better here.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import deconv_cli
from benchmarks.measuring import Case, Figures, Scale
from benchmarks.printing import Report, Table, Target, decibels
from deconv_cli.io import read_image
from deconv_cli.tone_curve import ToneCurve

SIZE = 128
READ_NOISE = 0.0005
"""Standard deviation of the noise in the dark, in parts of white."""
ELECTRONS = {"much light": 20_000, "little light": 1_000}
"""Counts at white; their square root is the noise there."""
KERNELS = ("disk:3", "motion:9@30")
PHOTOGRAPHS = {
    "chelsea": ("skimage", "data/chelsea.png", (20, 80)),
    "coffee": ("skimage", "data/coffee.png", (100, 150)),
    "rocket": ("skimage", "data/rocket.jpg", (80, 200)),
    "astronaut": ("skimage", "data/astronaut.png", (30, 120)),
    "motorcycle": ("skimage", "data/motorcycle_left.png", (60, 200)),
    "china": ("sklearn", "datasets/images/china.jpg", (100, 200)),
    "flower": ("sklearn", "datasets/images/flower.jpg", (80, 180)),
}
"""The package that each comes with, its file there, and the corner of what is shown."""


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        suffix: of its name.
        white: the largest sample.
        write: writes samples of shape (H, W, 3).
        is_encoded: whether the samples follow sRGB; else they are light.
    """

    suffix: str
    white: int
    write: Callable[[Path, NDArray[np.generic]], object]
    is_encoded: bool = True


KINDS = {
    "JPEG": Kind(".jpg", 255, lambda path, samples: Image.fromarray(samples).save(path, quality=92)),
    "PNG, 8 bits": Kind(".png", 255, lambda path, samples: Image.fromarray(samples).save(path)),
    "PNG, 16 bits": Kind(
        ".png", 65535, lambda path, samples: path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(samples)))
    ),
    "TIFF, 16 bits of light": Kind(".tif", 65535, tifffile.imwrite, is_encoded=False),
}


def cases(scale: Scale) -> list[Case]:
    """List what is measured."""
    names = scale.pick(list(PHOTOGRAPHS), ["astronaut"])
    size = scale.pick(SIZE, 48)
    return [
        Case(f"{name}, {kind}", restored, {"name": name, "kind": kind, "size": size}, PHOTOGRAPHS[name][0])
        for name in names
        for kind in KINDS
    ]


def restored(name: str, kind: str, size: int) -> Figures:
    """Measure both ways for one photograph and one kind of file, under every kernel and noise."""
    torch.set_num_threads(1)  # the pictures are small
    figures: Figures = {}
    for kernel in KERNELS:
        for noise, electrons in ELECTRONS.items():
            y, truth, curve = _photographed(name, KINDS[kind], kernel, electrons, size)
            figures[f"{kernel}, {noise}: blurred"] = _psnr(y, truth, curve.white)
            for light in ("linear", "stored"):
                result = deconv_cli.invert(
                    y,
                    deconv_cli.make_kernel(kernel),
                    defaults="picture",
                    prior="quadratic",
                    light=light,
                    tone_curve=curve,
                )
                figures[f"{kernel}, {noise}: {light}"] = _psnr(result.image, truth, curve.white)
    return figures


def report(outcomes: dict[str, Figures]) -> Report:
    """Compare."""
    targets, rows = [], []
    for kind, about in KINDS.items():
        known = [f for name, f in outcomes.items() if name.endswith(f", {kind}") and "failed" not in f]
        gains = []
        for noise in ELECTRONS if known else ():
            blurred, linear, stored = (_values(known, noise, what) for what in ("blurred", "linear", "stored"))
            gained = [a - b for a, b in zip(linear, stored, strict=True)]
            spread = (
                f"{min(gained):+.2f} to {max(gained):+.2f} dB, above 0 in {sum(g > 0 for g in gained)} of {len(gained)}"
            )
            medians = [decibels(statistics.median(part)) for part in (blurred, linear, stored)]
            rows.append([f"{kind}, {noise}", *medians, f"{statistics.median(gained):+.2f} dB", spread])
            gains += gained
        default, other = ("linear", "stored") if about.is_encoded else ("stored", "linear")
        sign = 1 if about.is_encoded else -1
        targets.append(
            Target(
                f"{kind}: PSNR in the default, {default}, above that in {other}, median",
                0.0,
                sign * statistics.median(gains) if gains else None,
                is_floor=True,
                unit=" dB",
            )
        )
    noises = " and of ".join(f"{count} electrons ({name})" for name, count in ELECTRONS.items())
    title = (
        f"Seven photographs in colors, {SIZE} × {SIZE}, blurred in light by {' and '.join(KERNELS)}, with the noise of "
        f"{noises} at white. Median PSNR of stored values, clipped to their range; λ and noise by default."
    )
    header = ("file", "as it came", "linear", "stored", "linear above stored, median", "all of them")
    failed = [[name, str(figures["failed"]), *[""] * 4] for name, figures in outcomes.items() if "failed" in figures]
    return Report("In linear light, or in samples as they are stored", targets, [Table(title, header, rows + failed)])


def _values(cases: list[Figures], noise: str, what: str) -> list[float]:
    """Gather one figure of all cases and kernels."""
    return [float(figures[f"{kernel}, {noise}: {what}"]) for figures in cases for kernel in KERNELS]


def _photographed(name: str, kind: Kind, kernel: str, electrons: int, size: int) -> tuple[Tensor, Tensor, ToneCurve]:
    """Photograph a scene larger than the frame: the file's samples, the truth, and the curve that is undone."""
    taps = deconv_cli.make_kernel(kernel)
    reach = (taps.shape[0] // 2, taps.shape[1] // 2)
    top, left = PHOTOGRAPHS[name][2]
    scene = _picture(name)[top : top + size + 2 * reach[0], left : left + size + 2 * reach[1]]
    srgb = ToneCurve.srgb(1.0)
    light = srgb.to_light(torch.from_numpy(scene / 255.0).permute(2, 0, 1))
    seen = deconv_cli.forward(light, taps, padding="valid")
    generator = torch.Generator().manual_seed(3)
    sigma = (seen.clamp_min(0) / electrons + READ_NOISE**2).sqrt()
    seen = seen + sigma * torch.randn(seen.shape, generator=generator, dtype=seen.dtype)
    truth = light[:, reach[0] : reach[0] + size, reach[1] : reach[1] + size]
    if kind.is_encoded:
        seen, truth = srgb.to_stored(seen), srgb.to_stored(truth)
    samples = (seen * kind.white).round().clamp(0, kind.white).permute(1, 2, 0).numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"photograph{kind.suffix}"
        kind.write(path, samples.astype(np.uint8 if kind.white == 255 else np.uint16))
        image = read_image(path)
    assert image.tone_curve is not None
    assert image.tone_curve.is_default == kind.is_encoded  # or the tables would speak of another default
    return image.values[0], truth * kind.white, image.tone_curve


def _picture(name: str) -> NDArray[np.uint8]:
    """Load a photograph in colors, of 8 bits, from the files of a package that need not be loaded."""
    package, place, _ = PHOTOGRAPHS[name]
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    return np.asarray(Image.open(Path(found.origin).parent / place))[..., :3]


def _psnr(image: Tensor, truth: Tensor, white: float) -> float:
    squares = (image.double().clamp(0, white) - truth.double()).square()
    return float(20 * math.log10(white) - 10 * squares.mean().log10())
