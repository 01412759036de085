"""Invert a 32 → 32-channel convolution of 128 × 128 features: pinv at every frequency against this package.

Run it on an idle machine: `python benchmarks/multichannel.py [--size 128] [--channels 32]`.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import deconv_cli

REPETITIONS = 3


def timed(call: Callable[[], object], repetitions: int = REPETITIONS) -> float:
    """Give the median wall time of a call in seconds."""
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def pinv_by_frequency(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Build the textbook inverse: `(C_in, C_out)` at every frequency of the full FFT."""
    placed = kernel.new_zeros(*kernel.shape[:2], *size)
    placed[..., :3, :3] = kernel
    spectrum = torch.fft.fft2(placed.roll((-1, -1), (-2, -1))).conj()
    return torch.linalg.pinv(spectrum.permute(2, 3, 0, 1))


def apply_by_frequency(inverse: Tensor, y: Tensor) -> Tensor:
    """Apply the textbook inverse to `(C_out, H, W)`."""
    spectrum = torch.fft.fft2(y).permute(1, 2, 0)[..., None]
    return torch.fft.ifft2((inverse @ spectrum)[..., 0].permute(2, 0, 1)).real


def relative_error(estimate: Tensor, truth: Tensor) -> float:
    """Give ‖estimate − truth‖ / ‖truth‖."""
    return float((estimate - truth).norm() / truth.norm())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--channels", type=int, default=32)
    options = parser.parse_args()
    size, channels = (options.size, options.size), options.channels
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(channels, channels, 3, 3, generator=generator, dtype=torch.float64) / (3 * channels**0.5)
    x = torch.randn(channels, *size, generator=generator, dtype=torch.float64)
    zero_padded = torch.nn.functional.conv2d(x[None], kernel, padding=1)[0]
    circular = deconv_cli.forward(x, kernel, boundary="circular")

    print(
        f"{channels} → {channels} channels, 3 × 3, {size[0]} × {size[1]}, float64; torch {torch.__version__}, ", end=""
    )
    print(f"{torch.get_num_threads()} threads, {platform.machine()}")
    textbook = pinv_by_frequency(kernel, size)
    rows = [
        (
            "pinv by frequency",
            timed(lambda: pinv_by_frequency(kernel, size), 1),
            timed(lambda: apply_by_frequency(textbook, circular)),
            relative_error(apply_by_frequency(textbook, circular), x),
            relative_error(apply_by_frequency(textbook, zero_padded), x),
        )
    ]
    for boundary in ("circular", "zero"):

        def build(boundary: str = boundary) -> deconv_cli.PseudoInverse:
            return deconv_cli.pseudo_inverse(kernel, input_size=size, boundary=boundary)

        inverse = build()
        y = circular if boundary == "circular" else zero_padded
        rows.append(
            (
                f"deconv, {boundary} ({inverse.choice.method})",
                timed(build, 1),
                timed(lambda inverse=inverse, y=y: inverse(y)),
                relative_error(inverse(circular), x),
                relative_error(inverse(zero_padded), x),
            )
        )
    print("| method | build s | ratio | apply s | ratio | error, circular data | error, zero-padded data |")
    print("|---|---|---|---|---|---|---|")
    for name, build_time, apply_time, on_circular, on_zero in rows:
        print(
            f"| {name} | {build_time:.2f} | {rows[0][1] / build_time:.1f} × | {apply_time:.3f} | "
            f"{rows[0][2] / apply_time:.1f} × | {on_circular:.1e} | {on_zero:.1e} |"
        )


if __name__ == "__main__":
    main()
