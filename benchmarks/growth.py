"""How do time, memory and iterations grow with the image, the channels and the kernel?"""

from __future__ import annotations

import torch

import deconv_cli
from benchmarks import problems
from benchmarks.measuring import Case, Figures, Scale, peak_memory, timed
from benchmarks.printing import (
    Report,
    Target,
    column,
    count,
    memory,
    number,
    ratio,
    seconds,
    small,
    table,
    times,
    word,
)

BOUNDARIES = ("unknown", "zero", "reflect", "symmetric", "replicate")
LAMBDA = 1e-3
LARGE = "32 channels"
FLOATS_OF_A_STRIP = 16
"""Images that a solution on the strip must be able to hold before it is tried."""


def cases(scale: Scale) -> list[Case]:
    """List what is measured."""
    return [*_layers(scale), *_pictures(scale), *_borders(scale), *_large(scale)]


def _layers(scale: Scale) -> list[Case]:
    sizes = [{"size": n, "n_channels": 8, "kernel_size": 3} for n in scale.pick((64, 128, 256, 512), (16,))]
    channels = [{"size": 64, "n_channels": c, "kernel_size": 3} for c in scale.pick((1, 2, 4, 8, 16, 32, 64), (2,))]
    kernels = [{"size": 128, "n_channels": 2, "kernel_size": k} for k in scale.pick((3, 7, 15, 31), (5,))]
    if scale.is_quick:
        channels, kernels = ([settings | {"size": 16} for settings in part] for part in (channels, kernels))
    return [
        *(Case(f"size: {s['size']}²", layer, dict(s)) for s in sizes),
        *(Case(f"channels: {s['n_channels']}", layer, dict(s)) for s in channels),
        *(Case(f"kernel: {s['kernel_size']} × {s['kernel_size']}", layer, dict(s)) for s in kernels),
    ]


def _pictures(scale: Scale) -> list[Case]:
    return [
        Case(
            f"picture: {n}²",
            picture,
            {"size": n, "diameter": scale.pick(31, 9)},
            n_bytes=4.0 * FLOATS_OF_A_STRIP * n**2,
        )
        for n in scale.pick((512, 1024, 2048, 4096, 8192), (64,))
    ]


def _borders(scale: Scale) -> list[Case]:
    return [
        Case(
            f"border: {boundary}, {n}²",
            strip,
            {"size": n, "diameter": scale.pick(31, 9), "boundary": boundary},
            n_bytes=8.0 * FLOATS_OF_A_STRIP * n**2,
        )
        for boundary in BOUNDARIES
        for n in scale.pick((256, 512, 1024, 2048), (32,))
    ]


def _large(scale: Scale) -> list[Case]:
    settings: dict[str, object] = {"size": scale.pick(512, 32), "n_channels": scale.pick(32, 4)}
    return [
        Case(f"{LARGE}: {dtype}", large, settings | {"dtype": dtype}, n_bytes=scale.pick(10e9, 0.0))
        for dtype in ("float64", "float32")
    ]


def layer(size: int, n_channels: int, kernel_size: int) -> Figures:
    """Measure the Moore–Penrose inverse under a zero border."""
    kernel, x = problems.near_identity_kernel(n_channels, kernel_size), problems.features(n_channels, size)
    y = deconv_cli.forward(x, kernel, boundary="zero")
    with peak_memory() as peak:
        build_s, inverse = timed(lambda: deconv_cli.pseudo_inverse(kernel, input_size=(size, size), boundary="zero"))
        apply_s, solution = timed(lambda: inverse.solve(y))
    return {
        "method": str(inverse.choice.method),
        "build_s": build_s,
        "apply_s": apply_s,
        "error": problems.relative_error(inverse.frame(solution.value), x),
        "certificate": solution.certificate,
        "n_iterations": solution.n_iterations,
        "peak_bytes": peak.n_bytes,
    }


def picture(size: int, diameter: int) -> Figures:
    """Measure a photograph whose surroundings are unknown, single precision."""
    kernel = problems.disk_kernel(diameter).float()
    y = deconv_cli.forward(problems.photograph(size + diameter - 1), kernel, padding="valid")
    filter_s, _ = timed(lambda: problems.one_shot_filter(y, kernel, LAMBDA))
    return _solved(y, kernel, "unknown", method="auto") | {"filter_s": filter_s}


def strip(size: int, diameter: int, boundary: str) -> Figures:
    """Measure the strip solver to a certificate of 1e-10 under one border, double precision."""
    kernel = problems.disk_kernel(diameter)
    is_unknown = boundary == "unknown"
    scene = problems.photograph(size + (diameter - 1) * is_unknown, torch.float64)
    y = deconv_cli.forward(
        scene, kernel, padding="valid" if is_unknown else "same", boundary="zero" if is_unknown else boundary
    )
    return _solved(y, kernel, boundary, method="strip", tolerance=1e-10)


def large(size: int, n_channels: int, dtype: str) -> Figures:
    """Measure many channels at a size where the border's dense matrices do not fit, to a certificate of 1e-6."""
    kernel = problems.random_kernel(n_channels).to(getattr(torch, dtype))
    y = deconv_cli.forward(problems.features(n_channels, size).to(kernel.dtype), kernel, boundary="zero")
    return _solved(y, kernel, "zero", method="auto", tolerance=1e-6)


def _solved(
    y: torch.Tensor, kernel: torch.Tensor, boundary: str, *, method: str, tolerance: float | None = None
) -> Figures:
    """Measure the exact answer with λ = 1e-3, built and solved."""
    size = (y.shape[-2], y.shape[-1])
    with peak_memory() as peak:
        build_s, inverse = timed(
            lambda: deconv_cli.pseudo_inverse(
                kernel, input_size=size, boundary=boundary, lam=LAMBDA, method=method, tolerance=tolerance
            )
        )
        apply_s, solution = timed(lambda: inverse.solve(y))
    return {
        "method": str(inverse.choice.method),
        "build_s": build_s,
        "apply_s": apply_s,
        "certificate": solution.certificate,
        "n_iterations": solution.n_iterations,
        "peak_bytes": peak.n_bytes,
        "image_bytes": y.numel() * y.element_size(),
        "total_bytes": peak.n_bytes + y.numel() * y.element_size(),
    }


def report(outcomes: dict[str, Figures]) -> Report:
    """Compare."""

    def part(title: str) -> dict[str, Figures]:
        return {
            name.removeprefix(f"{title}: "): figures
            for name, figures in outcomes.items()
            if name.startswith(f"{title}: ")
        }

    borders, many = part("border"), part(LARGE)
    first = many["float64"]
    gigabytes = ratio(number(first, "total_bytes"), 1e9)
    targets = [
        *(_growth_target(boundary, borders) for boundary in BOUNDARIES),
        Target("512² × 32 channels, float64, λ = 1e-3: certificate", 1e-6, number(first, "certificate")),
        Target("512² × 32 channels, float64, λ = 1e-3: peak memory with the data", 10, gigabytes, unit=" GB"),
    ]
    costs = [
        word("runs", "method"),
        column("build", "build_s", seconds),
        column("solve", "apply_s", seconds),
        column("iterations", "n_iterations", count),
        column("certificate", "certificate", small),
        column("peak memory", "peak_bytes", memory),
    ]
    layers = [*costs, column("error", "error", small)]
    near_identity = "zero border, λ = 0, float64, identity plus weak random taps (well-posed at every size)"
    relative = [
        (
            "with the data, in images",
            lambda figures: times(ratio(number(figures, "total_bytes"), number(figures, "image_bytes"))),
        ),
        (
            "solve, in one-shot FFT filters",
            lambda figures: times(ratio(number(figures, "apply_s"), number(figures, "filter_s"))),
        ),
    ]
    tables = [
        table(f"Size, 8 → 8 channels, 3 × 3, {near_identity}.", "size", part("size"), layers),
        table(f"Channels, 64 × 64, 3 × 3, {near_identity}.", "channels", part("channels"), layers),
        table(f"Kernel, 2 → 2 channels, 128 × 128, {near_identity}.", "kernel", part("kernel"), layers),
        table(
            "A photograph out of focus by a disk of 31 pixels, unknown border, λ = 1e-3, float32.",
            "size",
            part("picture"),
            [*costs, *relative],
        ),
        table(
            "The strip solver to a certificate of 1e-10: disk of 31 pixels, λ = 1e-3, float64.",
            "border, size",
            borders,
            costs,
        ),
        table(
            "512 × 512 × 32 channels, 3 × 3 random taps, zero border, λ = 1e-3, to a certificate of 1e-6.",
            "arithmetic",
            many,
            costs,
        ),
    ]
    return Report("Growth", targets, tables)


def _growth_target(boundary: str, borders: dict[str, Figures]) -> Target:
    """Set the iterations at the largest size against those at the smallest, where all sizes reached the certificate."""
    figures = [figures for name, figures in borders.items() if name.startswith(f"{boundary}, ")]
    counts = [number(each, "n_iterations") or 0 for each in figures if (number(each, "certificate") or 1) <= 1e-10]
    return Target(
        f"strip, {boundary} border, from 256² to 2048²: more iterations to 1e-10",
        2,
        counts[-1] - counts[0] if counts and len(counts) == len(figures) else None,
    )
