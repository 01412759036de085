"""Is the textbook method, `torch.linalg.pinv` of the kernel's FFT at every frequency, beaten, and by how much?"""

from __future__ import annotations

import torch
from torch import Tensor

import deconv_cli
from benchmarks import problems
from benchmarks.measuring import Case, Figures, Scale, peak_memory, timed
from benchmarks.printing import Report, Target, column, memory, number, ratio, seconds, small, table, times, word

TEXTBOOK = "pinv at every frequency"
TEXTBOOK_ONE_THREAD = "pinv at every frequency, one thread"
CIRCULAR = "deconv, circular, λ = 0"
ZERO = "deconv, zero, λ = 0"
TIKHONOV = "deconv, zero, λ = 1e-4"


def cases(scale: Scale) -> list[Case]:
    """List what is measured."""
    sizes: dict[str, object] = {"size": scale.pick(128, 16), "n_channels": scale.pick(32, 4)}
    return [
        Case(TEXTBOOK, textbook, sizes),
        Case(TEXTBOOK_ONE_THREAD, textbook, sizes | {"n_threads": 1}),
        Case(CIRCULAR, package, sizes | {"boundary": "circular", "lam": 0.0}),
        Case(ZERO, package, sizes | {"boundary": "zero", "lam": 0.0}),
        Case(TIKHONOV, package, sizes | {"boundary": "zero", "lam": 1e-4}),
    ]


def textbook(size: int, n_channels: int, n_threads: int | None = None) -> Figures:
    """Measure the textbook method, with torch's own choice of threads or with a number of them."""
    if n_threads is not None:
        torch.set_num_threads(n_threads)
    kernel, x, circular, zero = _problem(size, n_channels)
    with peak_memory() as peak:
        build_s, inverse = timed(lambda: _pinv_by_frequency(kernel, size))
        apply_s, estimate = timed(lambda: _apply_by_frequency(inverse, circular))
    return {
        "method": "pinv",
        "build_s": build_s,
        "apply_s": apply_s,
        "error_circular": problems.relative_error(estimate, x),
        "error_zero": problems.relative_error(_apply_by_frequency(inverse, zero), x),
        "peak_bytes": peak.n_bytes,
    }


def package(size: int, n_channels: int, boundary: str, lam: float) -> Figures:
    """Measure this package; the times are those for data that obey the boundary."""
    kernel, x, circular, zero = _problem(size, n_channels)
    y = circular if boundary == "circular" else zero
    with peak_memory() as peak:
        build_s, inverse = timed(
            lambda: deconv_cli.pseudo_inverse(kernel, input_size=(size, size), boundary=boundary, lam=lam)
        )
        apply_s, _ = timed(lambda: inverse(y))
    return {
        "method": str(inverse.choice.method),
        "build_s": build_s,
        "apply_s": apply_s,
        "error_circular": problems.relative_error(inverse(circular), x),
        "error_zero": problems.relative_error(inverse(zero), x),
        "certificate": inverse.solve(y).certificate,
        "peak_bytes": peak.n_bytes,
    }


def report(outcomes: dict[str, Figures]) -> Report:
    """Compare."""
    build, apply = (number(outcomes[TEXTBOOK], name) for name in ("build_s", "apply_s"))
    circular, zero = outcomes[CIRCULAR], outcomes[ZERO]
    targets = [
        Target("circular: build, against pinv", 100, ratio(build, number(circular, "build_s")), True, " ×"),
        Target("circular: apply, against pinv", 20, ratio(apply, number(circular, "apply_s")), True, " ×"),
        Target(
            "circular: error as a part of pinv's",
            1,
            ratio(number(circular, "error_circular"), number(outcomes[TEXTBOOK], "error_circular")),
        ),
        Target("conv2d with padding=1: relative error", 1e-8, number(zero, "error_zero")),
        Target("conv2d with padding=1: build, against pinv", 4, ratio(build, number(zero, "build_s")), True, " ×"),
        Target("conv2d with padding=1: an image after that", 0.3, number(zero, "apply_s"), unit=" s"),
        Target("exact Tikhonov, λ = 1e-4: certificate", 1e-10, number(outcomes[TIKHONOV], "certificate")),
    ]
    rows = table(
        "`y = F.conv2d(x, K)`, 32 → 32 channels, 3 × 3 random taps, 128 × 128 white features, float64, no noise: `x` "
        "from `y`. Ratios are against the first line, which leaves the number of threads to torch, as users do.",
        "method",
        outcomes,
        [
            word("runs", "method"),
            column("build", "build_s", seconds),
            ("faster", lambda figures: times(ratio(build, number(figures, "build_s")))),
            column("apply", "apply_s", seconds),
            ("faster", lambda figures: times(ratio(apply, number(figures, "apply_s")))),
            column("error, circular data", "error_circular", small),
            column("error, zero-padded data", "error_zero", small),
            column("certificate", "certificate", small),
            column("peak memory", "peak_bytes", memory),
        ],
    )
    return Report("Against pinv at every frequency", targets, [rows])


def _problem(size: int, n_channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kernel = problems.random_kernel(n_channels)
    x = problems.features(n_channels, size)
    circular = deconv_cli.forward(x, kernel, boundary="circular")
    return kernel, x, circular, torch.nn.functional.conv2d(x[None], kernel, padding=1)[0]


def _pinv_by_frequency(kernel: Tensor, size: int) -> Tensor:
    """Build the textbook inverse: `(C_in, C_out)` at every frequency of the full FFT."""
    placed = kernel.new_zeros(*kernel.shape[:2], size, size)
    placed[..., :3, :3] = kernel
    spectrum = torch.fft.fft2(placed.roll((-1, -1), (-2, -1))).conj()
    return torch.linalg.pinv(spectrum.permute(2, 3, 0, 1))


def _apply_by_frequency(inverse: Tensor, y: Tensor) -> Tensor:
    """Apply the textbook inverse to `(C_out, H, W)`."""
    spectrum = torch.fft.fft2(y).permute(1, 2, 0)[..., None]
    return torch.fft.ifft2((inverse @ spectrum)[..., 0].permute(2, 0, 1)).real
