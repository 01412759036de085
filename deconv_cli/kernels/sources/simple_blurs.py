"""Blurs with a short formula: Gaussians, a square, a disk, a straight motion, and a shift."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce
from operator import add

import torch

from deconv_cli.errors import UsageError
from deconv_cli.kernels.sources.formula import (
    BlurFamily,
    ContinuousKernel,
    KernelSource,
    Numbers,
    check_length,
    geometric,
)
from deconv_cli.vocabulary import shortened

_N_SIGMAS = 5
"""Where a Gaussian is cut: 6e-7 of its weight lies beyond, a rounding error of float32."""


def gaussian_kernel(sigma: float) -> ContinuousKernel:
    """Describe the density exp(−(x² + y²) / 2σ²) / 2πσ²."""
    return ContinuousKernel.radial(_gaussian_reach(sigma, "SIGMA"), lambda f: _gaussian_transform(sigma, f))


def _gaussian_reach(sigma: float, name: str) -> float:
    """Return half the width of a Gaussian along an axis, in samples; messages call its σ `name`."""
    return check_length(_N_SIGMAS * sigma, name)


def _gaussian_transform(sigma: float, frequency: torch.Tensor) -> torch.Tensor:
    """Transform a Gaussian along an axis, at frequencies in cycles a sample."""
    return torch.exp(-2 * (math.pi * sigma * frequency).square())


GAUSSIAN = KernelSource(
    ("SIGMA",),
    gaussian_kernel,
    BlurFamily(lambda reach, _: [(s,) for s in geometric(0.5, reach / 3, 1.12)], lambda _: (0.12,), log_penalty=0.0),
    example="1.5",
)


def gaussian3d_kernel(depth: float, sigma: float) -> ContinuousKernel:
    """Describe the density ∝ exp(−z²/2σz² − (x² + y²)/2σ²), with σz = `depth` in planes."""
    side = _gaussian_reach(sigma, "SIGMA")

    def transform(fz: torch.Tensor, fy: torch.Tensor, fx: torch.Tensor) -> torch.Tensor:
        return _gaussian_transform(depth, fz) * _gaussian_transform(sigma, fy) * _gaussian_transform(sigma, fx)

    return ContinuousKernel((_gaussian_reach(depth, "DEPTH"), side, side), transform)


GAUSSIAN3D = KernelSource(("DEPTH", "SIGMA"), gaussian3d_kernel, example="3@1.5")


def box_kernel(size: float) -> ContinuousKernel:
    """Describe a centered square with sides of `size` pixels."""
    half = check_length(size / 2, "SIZE")
    return ContinuousKernel((half, half), lambda fy, fx: torch.sinc(size * fy) * torch.sinc(size * fx))


BOX = KernelSource(("SIZE",), box_kernel, example="3")


def disk_kernel(radius: float) -> ContinuousKernel:
    """Describe a centered disk, of transform 2 J₁(v) / v with v = 2πrf."""

    def profile(frequency: torch.Tensor) -> torch.Tensor:
        v = (2 * math.pi * radius * frequency).clamp_min(1e-9)
        return 2 * torch.special.bessel_j1(v) / v

    return ContinuousKernel.radial(check_length(radius, "RADIUS"), profile)


DISK = KernelSource(
    ("RADIUS",),
    disk_kernel,
    BlurFamily(lambda reach, _: [(r,) for r in geometric(0.9, reach, 1.09)], lambda _: (0.09,), log_penalty=2.0),
    example="5.2",
)


def motion_kernel(length: float, angle: float) -> ContinuousKernel:
    """Describe a centered line, its angle in degrees counterclockwise from the horizontal as the picture is seen."""
    half = check_length(length / 2, "LENGTH")
    # Rows count downwards.
    down, right = -math.sin(math.radians(angle)), math.cos(math.radians(angle))
    reach = (abs(half * down), abs(half * right))
    return ContinuousKernel(reach, lambda fy, fx: torch.sinc(length * (fy * down + fx * right)))


def _motion_starts(reach: float) -> list[Numbers]:
    lengths = geometric(3.0, 2 * reach, 1.15)
    return [(length, 180 * i / n) for length in lengths for n in [_n_angles(length)] for i in range(n)]


def _n_angles(length: float) -> int:
    """Count the angles that a line of this length tells apart by a pixel or two at its ends."""
    return min(max(round(length), 8), 36)


MOTION = KernelSource(
    ("LENGTH", "ANGLE"),
    motion_kernel,
    BlurFamily(lambda reach, _: _motion_starts(reach), lambda n: (0.15, 180 / _n_angles(n[0])), log_penalty=15.0),
    example="9@30",
)


def disk_motion_kernel(radius: float, length: float, angle: float) -> ContinuousKernel:
    """Describe a disk that follows a line; see `disk_kernel` and `motion_kernel`."""
    return disk_kernel(radius) * motion_kernel(length, angle)


def _disk_motion_starts(best: Mapping[str, Numbers]) -> list[Numbers]:
    (radius,), (length, angle) = best["disk"], best["motion"]
    pairs = ((1.0, 0.4), (0.85, 0.7), (0.6, 0.9), (0.35, 1.0))
    return [(radius * r, length * m, angle) for r, m in pairs if radius * r > 1 and length * m > 2]


DISK_MOTION = KernelSource(
    ("RADIUS", "LENGTH", "ANGLE"),
    disk_motion_kernel,
    BlurFamily(lambda _, best: _disk_motion_starts(best), lambda n: (0.1, 0.15, 180 / max(n[1], 8)), log_penalty=20.0),
    example="4@9@30",
)


_MOST_SHIFT = 64.0
"""In samples."""


def shift_kernel(by: Numbers) -> ContinuousKernel:
    """Describe a point that lies `by` samples beside the center along each axis."""

    def transform(*frequencies: torch.Tensor) -> torch.Tensor:
        return torch.exp(-2j * math.pi * reduce(add, (f * moved for f, moved in zip(frequencies, by, strict=True))))

    return ContinuousKernel(tuple(map(abs, by)), transform)


def read_shift(text: str) -> Numbers:
    """Read a shift, one number for each axis.

    Raises:
        UsageError: not two or three numbers, or one that is too large.
    """
    try:
        numbers = tuple(float(part) for part in text.split("@"))
    except ValueError:
        numbers = ()
    if len(numbers) not in (2, 3) or not all(abs(number) <= _MOST_SHIFT for number in numbers):
        raise UsageError(
            f"a shift is written shift:DOWN@RIGHT (for stacks shift:PLANES@DOWN@RIGHT), in pixels and at most "
            f"{_MOST_SHIFT:g}, but is '{shortened(text)}'."
        )
    return numbers


SHIFT = KernelSource(("DOWN@RIGHT",), shift_kernel, read=read_shift, example="0.3@-0.2")
