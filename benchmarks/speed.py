"""Where does the time go? `python -m benchmarks speed [--only NAME]`: processor time by kind, beside its floor.

Each workload runs twice in a process of its own with one thread, after a small one that warms up: for its total, and
under a dispatcher that charges every operation of torch with its processor time: `FFTs`, `products` (matrix products,
convolutions and factorizations), and `other` operations, which move memory. The rest of the second run is Python, the
reading and writing of files, and the dispatcher itself. The floor is what cannot be avoided: a number of FFT filters or
a decomposition, written by hand and measured in the same process, and one pass over the data. Processor time,
unlike wall time, hardly depends on what else the machine does.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import deconv_cli
from benchmarks import problems
from benchmarks.measuring import Case, Figures, measure, peak_memory
from benchmarks.printing import describe_machine
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.tone_curve import ToneCurve

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "conv", "linalg", "lu_", "cholesky", "triangular", "einsum")
BYTECODE = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {
    "PYTHONPYCACHEPREFIX": str(Path(gettempdir()) / "deconv-speed-bytecode")
}
"""The environment of start-ups: bytecode is kept, as an installation keeps it."""
DISK = 4.3
LAMBDA = 1e-3


@dataclass(frozen=True)
class Work:
    """What is measured, and what cannot be avoided.

    Attributes:
        run: the workload.
        floor: the same by hand.
        data: one pass over it is a part of the floor.
        n_floors: number of floors that cannot be avoided.
        goal: the largest ratio to the floor that is aimed at.
    """

    run: Callable[[], object]
    floor: Callable[[], object]
    data: Tensor
    n_floors: float = 1.0
    goal: float | None = None


class Charges(TorchDispatchMode):
    """Adds up the processor time of torch's operations by kind, and counts transforms."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: Counter[str] = Counter()
        self.n_transformed = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        name = func.overloadpacket.__name__
        kind = "fft_s" if "_fft_" in name else "products_s" if name.startswith(PRODUCTS) else "other_s"
        began = time.process_time()
        result = func(*args, **(kwargs or {}))
        self.seconds[kind] += time.process_time() - began
        if kind == "fft_s":
            self.n_transformed += max(args[0].numel(), result.numel())
        return result


def run_one(name: str, is_quick: bool) -> Figures:
    """Measure one workload."""
    torch.set_num_threads(1)
    deconv_cli.keep_freed_memory()
    with Charges():  # libraries are imported and warm up
        WORKLOADS[name](True).run()
    with Charges():  # libraries are imported and warm up
        WORKLOADS[name](True).run()
    work = WORKLOADS[name](is_quick)
    floor_s = min(_seconds(work.floor) for _ in range(3))
    copy_s = min(_seconds(work.data.clone) for _ in range(3))
    with peak_memory() as peak:
        total_s = _seconds(work.run)
    # Once more: to charge an operation takes as long as a short operation itself.
    with Charges() as charges:
        charged_s = _seconds(work.run)
    return {
        "total_s": total_s,
        "charged_s": charged_s,
        **{kind: charges.seconds[kind] for kind in ("fft_s", "products_s", "other_s")},
        "n_transforms": charges.n_transformed / work.data.numel(),
        "floor_s": work.n_floors * floor_s + copy_s,
        "goal": work.goal or 0.0,
        "peak_bytes": peak.n_bytes,
    }


def start_up(arguments: list[str]) -> Figures:
    """Measure the processor time of a command, and of `import torch` alone as its floor."""
    code = "import sys; from deconv_cli.commands.app import main; main()"
    times = [_children_s([sys.executable, "-c", code, *arguments]) for _ in range(3)]
    floor = [_children_s([sys.executable, "-c", "import torch"]) for _ in range(3)]
    return {"total_s": min(times), "floor_s": min(floor)}


def main(only: list[str] | None, *, is_quick: bool) -> None:
    """Measure and print a table."""
    out = str(Path(gettempdir()) / "deconv-speed.png")
    image = str(Path(__file__).parent.parent / "sample_images" / "camera.png")
    starts = {
        "deconv --help": ["--help"],
        "deconv inspect": ["inspect", image],
        "deconv invert": ["invert", image, "--kernel", "disk:3", "--prior", "quadratic", "--force", "-q", "-o", out],
    }
    cases = [Case(name, run_one, {"name": name, "is_quick": is_quick}) for name in WORKLOADS]
    cases += [Case(name, start_up, {"arguments": arguments}) for name, arguments in starts.items()]
    unknown = set(only or ()) - {case.name for case in cases}
    if unknown:
        sys.exit(f"--only takes one of: {', '.join(case.name for case in cases)}; but got {', '.join(unknown)}")
    print(", ".join(f"{what} {value}" for what, value in describe_machine().items()) + "\n")
    print("| workload | total | FFTs | products | other operations | the rest | transforms | peak | × floor | goal |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for case in cases:
        if not only or case.name in only:
            print(_row(case.name, measure(case)), flush=True)


def _row(name: str, figures: Figures) -> str:
    if "failed" in figures:
        return f"| {name} | {figures['failed']} |"
    total, floor = float(figures["total_s"]), float(figures["floor_s"])
    if "fft_s" not in figures:
        return f"| {name} | {total:.2f} s |" + " |" * 6 + f" {total - floor:+.2f} s over `import torch` | |"
    parts = [float(figures[kind]) for kind in ("fft_s", "products_s", "other_s")]
    goal = f"{figures['goal']:g}" if figures["goal"] else ""
    rest = float(figures["charged_s"]) - sum(parts)
    cells = [f"{total:.2f} s", *(f"{part:.2f} s" for part in (*parts, rest))]
    cells += [f"{figures['n_transforms']:.0f}", f"{float(figures['peak_bytes']) / 2**30:.2f} GiB"]
    return f"| {name} | " + " | ".join([*cells, f"{total / floor:.1f}", goal]) + " |"


def _seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def _children_s(command: list[str]) -> float:
    before = _children()
    done = subprocess.run(command, check=False, capture_output=True, env=BYTECODE)
    if done.returncode not in (ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY):  # a sharp picture has no kernel
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    return _children() - before


def _children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _filter(y: Tensor, kernel: Tensor) -> Callable[[], Tensor]:
    return lambda: torch.stack([problems.one_shot_filter(part[None], kernel, LAMBDA)[0] for part in y])


def _jpeg(size: tuple[int, int], options: list[str], light: float, goal: float | None = None) -> Callable[[bool], Work]:
    """A JPEG file as a camera writes it, restored as typed; the floor is a filter with the same reading and writing."""

    def prepare(is_quick: bool) -> Work:
        rows, columns = (60, 80) if is_quick else size
        psf = deconv_cli.make_kernel(f"disk:{DISK}")
        margin = psf.shape[-1] - 1
        with Image.open(Path(__file__).parent.parent / "sample_images" / "astronaut.png") as opened:
            picture = np.asarray(opened.convert("RGB"))[:241, :307]
        pads = [(0, max(n + margin - have, 0)) for n, have in zip((rows, columns), picture.shape, strict=False)]
        picture = np.pad(picture, (*pads, (0, 0)), mode="symmetric")[: rows + margin, : columns + margin]
        curve = ToneCurve.srgb(255.0)
        scene = light * curve.to_light(torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1))
        stored = curve.to_stored(deconv_cli.forward(scene, psf, padding="valid"))
        stored += torch.randn(stored.shape, generator=torch.Generator().manual_seed(0))
        source, target = (str(Path(gettempdir()) / f"deconv-speed-{rows}.{kind}") for kind in ("jpg", "png"))
        samples = stored.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(samples).save(source, quality=92)

        def by_hand() -> None:
            y = torch.from_numpy(np.array(Image.open(source))).permute(2, 0, 1).float()
            restored = _filter(y, psf.float())().clamp(0, 255).byte()
            Image.fromarray(restored.permute(1, 2, 0).numpy()).save(io.BytesIO(), "PNG", compress_level=1)

        command = ["invert", source, "--kernel", f"disk:{DISK}", *options, "-o", target, "--force", "-q"]
        return Work(lambda: _typed(command), by_hand, stored, goal=goal)

    return prepare


def _typed(arguments: list[str]) -> None:
    from deconv_cli.commands.app import app

    app(arguments, standalone_mode=False)


def _picture(size: int, boundary: str, goal: float, dtype: torch.dtype = torch.float32, **options: Any) -> Any:  # noqa: ANN401
    """A gray picture under a border, from the kernel to the estimate; the floor is one filter."""

    def prepare(is_quick: bool) -> Work:
        side, n_taps = (64, 7) if is_quick else (size, options.get("n_taps", 9))
        kernel = problems.disk_kernel(n_taps).to(dtype)
        y = deconv_cli.forward(problems.photograph(side, dtype), kernel, padding="same", boundary="zero")
        y = y + 0.01 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
        tolerance = options.get("tolerance", 1e-6)
        settings = {"boundary": boundary, "lam": LAMBDA, "tolerance": tolerance, "padding": "same"}
        run = lambda: deconv_cli.pseudo_inverse(kernel, input_size=(side, side), **settings).solve(y)  # noqa: E731
        return Work(run, _filter(y, kernel), y, goal=goal)

    return prepare


def _variation(is_quick: bool) -> Work:
    side = 64 if is_quick else 2048
    kernel = problems.disk_kernel(9).float()
    y = deconv_cli.forward(problems.photograph(side), kernel, padding="same", boundary="reflect")
    y = y + 0.01 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    return Work(
        lambda: deconv_cli.invert(y, kernel, defaults="picture", prior="tv", predict=False),
        _filter(y, kernel),
        y,
        goal=40.0,
    )


def _layer(
    boundary: str, goal: float | None, invert: Callable[[Tensor], Tensor] | None = None
) -> Callable[[bool], Work]:
    """A layer of 32 channels: its build beside what `invert` makes of its blocks, or an image beside circular filters.

    The blocks are those of half the spectrum. One thread is the best of any number for them: more take as much
    processor time or more, and the singular values of batches many times as much.
    """

    def prepare(is_quick: bool) -> Work:
        n_channels, side = (4, 16) if is_quick else (32, 128)
        kernel, y = problems.random_kernel(n_channels), problems.features(n_channels, side)
        blocks = torch.fft.rfft2(kernel, s=(side, side)).permute(2, 3, 0, 1).reshape(-1, n_channels, n_channels)
        options: dict[str, Any] = {
            "boundary": boundary,
            "padding": "same",
            "lam": 0.0 if boundary == "zero" else LAMBDA,
        }
        build = lambda: deconv_cli.pseudo_inverse(kernel, input_size=(side, side), **options)  # noqa: E731
        if invert is not None:
            return Work(build, lambda: invert(blocks), torch.view_as_real(blocks), goal=goal)
        inverse = build()
        circular = deconv_cli.pseudo_inverse(kernel, input_size=(side, side), boundary="circular", lam=LAMBDA)
        return Work(lambda: inverse(y), lambda: circular(y), y, goal=goal)

    return prepare


def _stack(**options: Any) -> Callable[[bool], Work]:  # noqa: ANN401
    """A stack of cells with the noise of few counts; the floor is one FFT filter."""
    settings = {"dimensions": 3, "defaults": "picture", "predict": False, **options}

    def prepare(is_quick: bool) -> Work:
        size, taps = ((8, 24, 24), (5, 5, 5)) if is_quick else ((32, 160, 160), (15, 15, 15))
        psf = problems.microscope_psf(taps)
        blurred = deconv_cli.forward(problems.cells(size)[None], psf, dimensions=3, boundary="zero")
        counts = torch.poisson(100 * blurred.clamp_min(0), generator=torch.Generator().manual_seed(0)).float()
        run = lambda: deconv_cli.invert(counts, psf.float(), **settings)  # noqa: E731
        return Work(run, _filter(counts, psf.float()), counts)

    return prepare


def _richardson_lucy_steps(is_quick: bool) -> Work:
    """A number of steps under an unknown border; the floor is RedLionfish, which repeats the stack.

    Each of its steps takes two pairs of SciPy's FFTs of the data's own size, two products, a quotient and a product.
    """
    import scipy.fft

    size, taps = ((8, 24, 24), (5, 5, 5)) if is_quick else ((64, 256, 256), (31, 25, 25))
    psf, n_steps = problems.microscope_psf(taps).float(), 2 if is_quick else 30
    blurred = deconv_cli.forward(problems.cells(size)[None], psf.double(), dimensions=3, boundary="zero")
    counts = torch.poisson(1000 * blurred.clamp_min(0), generator=torch.Generator().manual_seed(0)).float()
    y = counts[0].numpy()
    symbol = scipy.fft.rfftn(psf.numpy(), s=size)
    mirrored = np.ascontiguousarray(symbol.conj())

    def by_hand() -> object:
        x = y.copy()
        for _ in range(n_steps):
            mean = scipy.fft.irfftn(scipy.fft.rfftn(x) * symbol, s=size)
            ratio = y / np.where(mean == 0, 1e-14, mean)
            x = x * scipy.fft.irfftn(scipy.fft.rfftn(ratio) * mirrored, s=size)
        return x

    settings: dict[str, Any] = {
        "method": "richardson-lucy",
        "iterations": n_steps,
        "boundary": "unknown",
        "predict": False,
    }
    return Work(lambda: deconv_cli.invert(counts, psf, dimensions=3, **settings), by_hand, counts, goal=1.2)


WORKLOADS: dict[str, Callable[[bool], Work]] = {
    "jpeg-6mp": _jpeg((2000, 3000), ["--prior", "quadratic"], 0.9, 12),
    "jpeg-6mp-saturated": _jpeg((2000, 3000), ["--prior", "quadratic"], 1.6, 12),
    "jpeg-640": _jpeg((430, 640), [], 0.9),
    "jpeg-640-saturated": _jpeg((430, 640), [], 1.6),
    "tv-2048": _variation,
    "nonnegative-3d": _stack(nonnegative=True),
    "richardson-lucy-3d": _stack(method="richardson-lucy"),
    "richardson-lucy-steps": _richardson_lucy_steps,
    "circular-build": _layer("circular", 1.3, torch.linalg.inv),
    "layer-build": _layer("zero", 2, torch.linalg.pinv),
    "layer-build-by-inv": _layer("zero", None, torch.linalg.inv),
    "layer-image": _layer("zero", 10),
    "unknown-512": _picture(512, "unknown", 8),
    "unknown-4096": _picture(4096, "unknown", 4),
    "unknown-8192": _picture(8192, "unknown", 6),
    "reflect-2048": _picture(2048, "reflect", 8, torch.float64, tolerance=1e-10),
    "symmetric-2048": _picture(2048, "symmetric", 8, torch.float64, tolerance=1e-10),
    "replicate-2048": _picture(2048, "replicate", 8, torch.float64, tolerance=1e-10),
    "zero-2048": _picture(2048, "zero", 8, torch.float64, tolerance=1e-10),
    "large-kernel-1024": _picture(1024, "unknown", 60, n_taps=1023),
}
"""By name; each takes whether the sizes are tiny."""
