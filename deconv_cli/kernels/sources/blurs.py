"""Blurs by formula: Gaussians, squares, disks, straight motions, shifts, Airy's rings, Moffat's stars, and polygons."""

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
    read_floats,
)
from deconv_cli.vocabulary import shortened

_N_SIGMAS = 5
"""Where a Gaussian is cut: 6e-7 of its weight lies beyond, a rounding error of float32."""


def gaussian_kernel(sigma: float) -> ContinuousKernel:
    """Describe the density exp(−(x² + y²) / 2σ²) / 2πσ²."""
    reach = check_length(_N_SIGMAS * sigma, "SIGMA")
    return ContinuousKernel.radial(reach, lambda f: _gaussian_transform(sigma, f))


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
    side = check_length(_N_SIGMAS * sigma, "SIGMA")

    def transform(fz: torch.Tensor, fy: torch.Tensor, fx: torch.Tensor) -> torch.Tensor:
        return _gaussian_transform(depth, fz) * _gaussian_transform(sigma, fy) * _gaussian_transform(sigma, fx)

    return ContinuousKernel((check_length(_N_SIGMAS * depth, "DEPTH"), side, side), transform)


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


def _disk_motion_starts(best: Mapping[str, Numbers]) -> list[Numbers]:
    (radius,), (length, angle) = best["disk"], best["motion"]
    pairs = ((1.0, 0.4), (0.85, 0.7), (0.6, 0.9), (0.35, 1.0))
    return [(radius * r, length * m, angle) for r, m in pairs if radius * r > 1 and length * m > 2]


DISK_MOTION = KernelSource(
    ("RADIUS", "LENGTH", "ANGLE"),
    lambda radius, length, angle: disk_kernel(radius) * motion_kernel(length, angle),
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
    numbers = read_floats(text.split("@"))
    if len(numbers) not in (2, 3) or not all(abs(number) <= _MOST_SHIFT for number in numbers):
        raise UsageError(
            f"a shift is written shift:DOWN@RIGHT (for stacks shift:PLANES@DOWN@RIGHT), in pixels and at most "
            f"{_MOST_SHIFT:g}, but is '{shortened(text)}'."
        )
    return numbers


SHIFT = KernelSource(("DOWN@RIGHT",), shift_kernel, read=read_shift, example="0.3@-0.2")


_FIRST_ZERO = 3.8317059702075125
"""Of the Bessel function J₁."""
_N_RADII = 6
"""Where the rings are cut, in radii of the first: about 3 % of the light lies beyond."""
_SIGMA_OF_RADIUS = 0.34
"""σ of the nearest Gaussian over the radius: σ = 0.42 λN, and the first zero is at 1.22 λN."""


def airy_kernel(radius: float) -> ContinuousKernel:
    """Describe the diffraction of a round aperture, (2 J₁(v) / v)², up to six times the first zero.

    The radius is that of the first dark ring, 1.22 λN (Airy, On the diffraction of an object-glass with circular
    aperture, Transactions of the Cambridge Philosophical Society 5, 1835); the transform is that of Goodman,
    Introduction to Fourier optics, 1968, section 6.4.
    """
    reach = check_length(_N_RADII * radius, "RADIUS")
    finest = _FIRST_ZERO / (math.pi * radius)

    def profile(frequency: torch.Tensor) -> torch.Tensor:
        share = (frequency / finest).clamp(max=1)
        return 2 / math.pi * (share.acos() - share * (1 - share.square()).sqrt())

    return ContinuousKernel.radial(reach, profile)


AIRY = KernelSource(
    ("RADIUS",),
    airy_kernel,
    BlurFamily(
        lambda _, best: [(best["gaussian"][0] / _SIGMA_OF_RADIUS * ratio,) for ratio in (0.7, 0.85, 1.0, 1.15)],
        lambda _: (0.15,),
        log_penalty=14.0,
    ),
    example="3",
)


_BETAS = (1.1, 30.0)
_SHARE_BEYOND = 0.002
"""Part of the light of a star that is cut."""
_MOST_RADII = 12
"""Where the wings are cut at the latest, in widths at half maximum."""
_STEP, _LAST = 0.15, 15.0
"""Of the rule of trapezoids in t."""
_N_NODES = 1000
"""Points of the table of the transform; linear interpolation between them is right to 1e-4."""


def moffat_kernel(fwhm: float, beta: float) -> ContinuousKernel:
    """Describe a star seen through the atmosphere, (1 + (r / α)²)^−β, out to 99.8 % of its light or twelve widths.

    `fwhm` is the full width at half maximum, and β from 1.1 to 30 says how fast the wings fall: 2.5 to 4.8 for the
    atmosphere (Moffat, A theoretical investigation of focal stellar images in the photographic emulsion, Astronomy and
    Astrophysics 3, 1969). With ν = β − 1 and z = 2παf the transform is 2 (z/2)^ν K_ν(z) / Γ(ν), where K_ν(z) = ∫ exp(−z
    cosh t) cosh(νt) dt (NIST Digital Library of Mathematical Functions, equation 10.32.9).
    """
    if not _BETAS[0] <= beta <= _BETAS[1]:
        raise UsageError(f"BETA must be from {_BETAS[0]} to {_BETAS[1]:g}, but is {beta:g}.")
    check_length(fwhm, "FWHM")
    alpha = fwhm / (2 * math.sqrt(2 ** (1 / beta) - 1))
    # Beyond r lies the share (1 + (r/α)²)^(1 − β).
    reach = min(alpha * math.sqrt(_SHARE_BEYOND ** (1 / (1 - beta)) - 1), _MOST_RADII * fwhm)
    order = beta - 1
    highest = 40 + 10 * math.sqrt(order)
    # Close to each other where the transform has its cusp.
    nodes = _moffat_transform(order, highest * torch.linspace(0, 1, _N_NODES + 1, dtype=torch.float64).square())

    def profile(frequency: torch.Tensor) -> torch.Tensor:
        at = (2 * math.pi * alpha / highest * frequency).clamp(max=1).sqrt() * _N_NODES
        before = at.long().clamp(max=_N_NODES - 1)
        return torch.lerp(nodes[before], nodes[before + 1], at - before)

    return ContinuousKernel.radial(check_length(reach, "FWHM"), profile)


def _moffat_transform(order: float, z: torch.Tensor) -> torch.Tensor:
    """Give 2 (z/2)^ν K_ν(z) / Γ(ν), shape `(n,)`; 1 at z = 0."""
    t = torch.arange(0, _LAST, _STEP, dtype=z.dtype)
    weights = torch.full_like(t, _STEP)
    weights[0] /= 2
    scale = order * (z / 2).log() - math.lgamma(order)
    exponents = scale[:, None] - z[:, None] * t.cosh() + order * t
    return torch.where(z > 0, (exponents.exp() * (1 + (-2 * order * t).exp())) @ weights, 1.0)


MOFFAT = KernelSource(
    ("FWHM", "BETA"),
    moffat_kernel,
    BlurFamily(
        lambda _, best: [(2.355 * best["gaussian"][0] * r, beta) for r in (0.7, 0.85, 1.0) for beta in (2.0, 3.0, 4.5)],
        lambda _: (0.15, 0.3),
        log_penalty=14.0,
    ),
    example="4@3",
)


_MOST_BLADES = 12
_NO_WAVE = 1e-16
"""Squares of frequencies below this are zero up to rounding."""


def polygon_kernel(blades: float, radius: float, angle: float) -> ContinuousKernel:
    """Describe a regular polygon of 3 to 12 sides, as a diaphragm of straight blades leaves it of a point out of focus.

    The radius reaches from the center to a corner; the angle of one corner is in degrees, counterclockwise from the
    horizontal as a point of the picture is seen. The transform is an integral along the sides, by the divergence
    theorem.
    """
    if blades != round(blades) or not 3 <= blades <= _MOST_BLADES:
        raise UsageError(f"BLADES must be a whole number from 3 to {_MOST_BLADES}, but is {blades:g}.")
    check_length(radius, "RADIUS")
    half = math.pi / blades
    inner, side = radius * math.cos(half), 2 * radius * math.sin(half)
    area = blades * inner * side / 2
    normals = [math.radians(angle) + half * (2 * i + 1) for i in range(round(blades))]

    def transform(fy: torch.Tensor, fx: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(fy + fx, dtype=torch.complex128)
        for normal in normals:
            # Rows count downwards.
            across, along = fx * math.cos(normal) - fy * math.sin(normal), fx * math.sin(normal) + fy * math.cos(normal)
            total += torch.polar(across * torch.sinc(side * along), -2 * math.pi * inner * across)
        squares = fx.square() + fy.square()
        return torch.where(squares > _NO_WAVE, 1j * side / (2 * math.pi * area) * total / squares, 1.0)

    return ContinuousKernel((radius, radius), transform)


def _polygon_starts(best: Mapping[str, Numbers]) -> list[Numbers]:
    """Start near the disk of the same area; power does not tell a polygon from itself turned by half a turn."""
    radius = best["disk"][0]
    if radius < 1.5:
        return []
    starts: list[Numbers] = []
    for blades in (5, 6, 7, 8):
        corner = radius * math.sqrt(2 * math.pi / (blades * math.sin(2 * math.pi / blades)))
        starts += [(float(blades), corner, _polygon_period(blades) * i / 4) for i in range(4)]
    return starts


def _polygon_period(blades: float) -> float:
    return 180 / blades if blades % 2 else 360 / blades


POLYGON = KernelSource(
    ("BLADES", "RADIUS", "ANGLE"),
    polygon_kernel,
    BlurFamily(
        lambda _, best: _polygon_starts(best),
        lambda n: (0.0, 0.06, 90 / n[0]),
        log_penalty=7.5,
        period=lambda n: _polygon_period(n[0]),
    ),
    example="6@5.2@10",
)
