"""What does a photograph gain over scikit-image's `wiener` and `unsupervised_wiener`, and at what cost?

Three problems: an out-of-focus photograph, whose surroundings nobody knows; the circular filter that scikit-image
computes, at 4096²; and the exact answer under an unknown border at that size, against the one-shot filter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import deconv_cli
from benchmarks import problems
from benchmarks.measuring import Case, Figures, Scale, peak_memory, timed
from benchmarks.printing import (
    Report,
    Target,
    column,
    count,
    decibels,
    memory,
    number,
    ratio,
    seconds,
    small,
    table,
    times,
    word,
)

NOISE = 0.5 / 255
BAND = 16
LAMBDA = 1e-3
# Each method is given the best of these, by the truth: the comparison is of methods, not of guesses.
LAMBDAS = tuple(10.0 ** (exponent / 2) for exponent in range(-12, 5))
CHOICE_SIZE = 226
MIN_FLOATS = 40.0
"""Single-precision images of the full size that must fit into memory before a large case is tried."""

SPEED = "circular, λ = 1e-3"
BORDER = "unknown border, λ = 1e-3"

Restore = Callable[[Tensor, Tensor, float], Tensor]
"""Takes data `(1, H, W)`, a symmetric kernel and λ, and gives an estimate `(1, H, W)`."""


@dataclass(frozen=True)
class Method:
    """A way to restore a photograph.

    Attributes:
        restore: what it does.
        peer: the package that it needs beside this one.
        takes_lambda: whether it needs λ as an argument.
    """

    restore: Restore
    peer: str | None = None
    takes_lambda: bool = True


def cases(scale: Scale) -> list[Case]:
    """List what is measured."""
    large, diameter = scale.pick(4096, 256), scale.pick(31, 9)
    listed = []
    photographs = [("camera", scale.pick(242, 96), scale.pick(15, 9)), ("tile", large, diameter)]
    for title, size, blur in scale.pick(photographs, photographs[:1]):
        sizes: dict[str, object] = {"size": size, "diameter": blur}
        listed.append(Case(f"{title}: as it came, blurred", blurred, sizes))
        listed += [
            Case(f"{title}: {name}", restored, {"name": name} | sizes, method.peer, MIN_FLOATS * 4 * size**2)
            for name, method in METHODS.items()
        ]
    sizes = {"size": large, "diameter": diameter}
    n_bytes = MIN_FLOATS * 4 * large**2
    return [
        *listed,
        Case(f"{SPEED}: skimage wiener", circular_peer, sizes, "skimage", n_bytes),
        Case(f"{SPEED}: deconv", circular_package, sizes, None, n_bytes),
        Case(f"{BORDER}: one-shot circular filter in torch", one_shot, sizes, None, n_bytes),
        Case(f"{BORDER}: one-shot circular filter of deconv", border, sizes | {"boundary": "circular"}, None, n_bytes),
        Case(f"{BORDER}: deconv", border, sizes | {"boundary": "unknown"}, None, n_bytes),
    ]


def blurred(size: int, diameter: int) -> Figures:
    """Measure the error of the data themselves."""
    _, truth, y = _photograph(size, diameter)
    return {"psnr": problems.psnr(y, truth), "border_psnr": problems.psnr(y, truth, BAND)}


def restored(name: str, size: int, diameter: int) -> Figures:
    """Measure a restoration of a photograph, with the λ that suits the method best in its first corner."""
    method = METHODS[name]
    kernel, truth, y = _photograph(size, diameter)
    corner, corner_truth = (part[:, :CHOICE_SIZE, :CHOICE_SIZE].clone() for part in (y, truth))
    lam = max(
        LAMBDAS if method.takes_lambda else (0.0,),
        key=lambda lam: problems.psnr(method.restore(corner, kernel, lam), corner_truth),
    )
    with peak_memory() as peak:
        elapsed, estimate = timed(lambda: method.restore(y, kernel, lam))
    return {
        "lam": f"{lam:.1g}" if method.takes_lambda else "its own",
        "seconds": elapsed,
        "psnr": problems.psnr(estimate, truth),
        "border_psnr": problems.psnr(estimate, truth, BAND),
        "peak_bytes": peak.n_bytes,
    }


def circular_peer(size: int, diameter: int) -> Figures:
    """Measure scikit-image's filter on data for which it is right."""
    return _circular(_wiener_unclipped, size, diameter)


def circular_package(size: int, diameter: int) -> Figures:
    """Measure this package's answer to the same problem with the same penalty."""
    return _circular(_package("circular", "laplacian"), size, diameter)


def one_shot(size: int, diameter: int) -> Figures:
    """Measure the circular filter as one writes it in torch."""
    kernel, truth, y = _photograph(size, diameter)
    with peak_memory() as peak:
        elapsed, estimate = timed(lambda: problems.one_shot_filter(y, kernel, LAMBDA))
    return _border_figures(elapsed, estimate, truth, peak.n_bytes)


def border(size: int, diameter: int, boundary: str) -> Figures:
    """Measure this package on data that see more than their frame."""
    kernel, truth, y = _photograph(size, diameter)

    def restore() -> tuple[Tensor, deconv_cli.Solution | None, str]:
        inverse = deconv_cli.pseudo_inverse(kernel, input_size=(size, size), boundary=boundary, lam=LAMBDA)
        if boundary == "circular":  # nobody asks for a certificate of what is solved in closed form
            return inverse(y), None, str(inverse.choice.method)
        solution = inverse.solve(y)
        return inverse.frame(solution.value), solution, str(inverse.choice.method)

    with peak_memory() as peak:
        elapsed, (estimate, solution, method) = timed(restore)
    figures = _border_figures(elapsed, estimate, truth, peak.n_bytes) | {"method": method}
    if solution is not None:
        figures |= {"certificate": solution.certificate, "n_iterations": solution.n_iterations}
    return figures


def report(outcomes: dict[str, Figures]) -> Report:
    """Compare."""

    def part(title: str) -> dict[str, Figures]:
        return {
            name.removeprefix(f"{title}: "): figures
            for name, figures in outcomes.items()
            if name.startswith(f"{title}: ")
        }

    camera, tile, speed, borders = part("camera"), part("tile"), part(SPEED), part(BORDER)
    wiener, filtered, exact = (
        speed["skimage wiener"],
        borders["one-shot circular filter in torch"],
        borders["deconv"],
    )
    targets = [
        Target(
            "circular 4096², float32: time as a part of skimage wiener's",
            0.6,
            ratio(number(speed["deconv"], "seconds"), number(wiener, "seconds")),
        ),
        Target("unknown border, 4096²: certificate", 1e-6, number(exact, "certificate")),
        Target(
            "unknown border, 4096²: time, against the one-shot filter",
            20,
            ratio(number(exact, "seconds"), number(filtered, "seconds")),
            unit=" ×",
        ),
        Target(
            "unknown border, 4096²: peak memory with the data, in images",
            12,
            ratio(number(exact, "total_bytes"), number(exact, "image_bytes")),
        ),
    ]
    quality = [
        word("λ", "lam"),
        column("PSNR", "psnr", decibels),
        column(f"PSNR, outer {BAND} pixels", "border_psnr", decibels),
        column("time", "seconds", seconds),
        column("peak memory", "peak_bytes", memory),
    ]
    tables = [
        table(
            "The sample photograph `camera`, out of focus by a disk of 15 pixels, cropped to 242 × 242 so that the "
            "light from outside the frame is in the data and nothing else is known of it; noise σ = 0.5 gray levels; "
            "float32. Each method has the λ that gives it the best PSNR, and otherwise its default settings.",
            "method",
            camera,
            quality,
        ),
        table(
            "A piece of the same photograph, mirrored until it fills 4096 × 4096, disk of 31 pixels; λ chosen in its "
            "first corner.",
            "method",
            tile,
            quality,
        ),
        table(
            "The circular filter with a Laplacian penalty, 4096 × 4096, float32, kernel to image, the filter built "
            "each time: the same formula in both.",
            "package",
            speed,
            [
                column("time", "seconds", seconds),
                ("of wiener's", lambda figures: times(ratio(number(figures, "seconds"), number(wiener, "seconds")))),
                column("PSNR", "psnr", decibels),
                column("peak memory", "peak_bytes", memory),
            ],
        ),
        table(
            "4096 × 4096 seen through a disk of 31 pixels, float32, λ = 1e-3, identity penalty, kernel to image.",
            "method",
            borders,
            [
                word("runs", "method"),
                column("time", "seconds", seconds),
                (
                    "of the filter's",
                    lambda figures: times(ratio(number(figures, "seconds"), number(filtered, "seconds"))),
                ),
                column("certificate", "certificate", small),
                column("iterations", "n_iterations", count),
                column("PSNR", "psnr", decibels),
                column(f"PSNR, outer {BAND} pixels", "border_psnr", decibels),
                column("peak memory", "peak_bytes", memory),
            ],
        ),
    ]
    return Report("Photographs, against scikit-image", targets, tables)


def _wiener(y: Tensor, kernel: Tensor, lam: float) -> Tensor:
    from skimage.restoration import wiener

    return torch.from_numpy(wiener(y[0].numpy(), kernel.numpy(), lam))[None]


def _wiener_unclipped(y: Tensor, kernel: Tensor, lam: float) -> Tensor:
    from skimage.restoration import wiener

    return torch.from_numpy(wiener(y[0].numpy(), kernel.numpy(), lam, clip=False))[None]


def _wiener_mirrored(y: Tensor, kernel: Tensor, lam: float) -> Tensor:
    reach = len(kernel)
    padded = torch.from_numpy(np.pad(y[0].numpy(), reach, mode="reflect"))[None]
    return _wiener(padded, kernel, lam)[:, reach:-reach, reach:-reach]


def _unsupervised_wiener(y: Tensor, kernel: Tensor, lam: float) -> Tensor:
    from skimage.restoration import unsupervised_wiener

    estimate, _ = unsupervised_wiener(y[0].numpy(), kernel.numpy(), rng=0)
    return torch.from_numpy(estimate)[None]


def _package(boundary: str, penalty: str) -> Restore:
    def restore(y: Tensor, kernel: Tensor, lam: float) -> Tensor:
        size = (y.shape[-2], y.shape[-1])
        return deconv_cli.pseudo_inverse(kernel, input_size=size, boundary=boundary, lam=lam, penalty=penalty)(y)

    return restore


METHODS = {
    "skimage wiener": Method(_wiener, "skimage"),
    "skimage wiener, mirrored by hand": Method(_wiener_mirrored, "skimage"),
    "skimage unsupervised_wiener": Method(_unsupervised_wiener, "skimage", takes_lambda=False),
    "deconv, circular, gradient": Method(_package("circular", "gradient")),
    "deconv, unknown, gradient": Method(_package("unknown", "gradient")),
}


def _photograph(size: int, diameter: int) -> tuple[Tensor, Tensor, Tensor]:
    """Photograph a scene larger than the frame: the kernel, the truth within the frame, and the noisy data."""
    kernel = problems.disk_kernel(diameter).float()
    scene = problems.photograph(size + diameter - 1)
    y = deconv_cli.forward(scene, kernel, padding="valid")
    reach = diameter // 2
    truth = scene[:, reach : reach + size, reach : reach + size].clone()
    return kernel, truth, y + NOISE * torch.randn(y.shape, generator=torch.Generator().manual_seed(2))


def _circular(restore: Restore, size: int, diameter: int) -> Figures:
    kernel, truth = problems.disk_kernel(diameter).float(), problems.photograph(size)
    y = deconv_cli.forward(truth, kernel, boundary="circular")
    y += NOISE * torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    with peak_memory() as peak:
        elapsed, estimate = timed(lambda: restore(y, kernel, LAMBDA))
    return {"seconds": elapsed, "psnr": problems.psnr(estimate, truth), "peak_bytes": peak.n_bytes}


def _border_figures(elapsed: float, estimate: Tensor, truth: Tensor, peak_bytes: int) -> Figures:
    image_bytes = truth.numel() * truth.element_size()
    return {
        "seconds": elapsed,
        "psnr": problems.psnr(estimate, truth),
        "border_psnr": problems.psnr(estimate, truth, BAND),
        "peak_bytes": peak_bytes,
        "image_bytes": image_bytes,
        "total_bytes": peak_bytes + image_bytes,
    }
