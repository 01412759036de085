"""Blurs with a short formula: Gaussians, a square, a disk, a straight motion, a motion along any path, and a shift."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from functools import reduce
from operator import add
from pathlib import Path

import torch

from deconv_cli.errors import UsageError
from deconv_cli.kernels.sources.kernel_source import (
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


_MOST_POINTS = 100_000
_PIECE = 0.5
"""Pixels, on which three nodes integrate a wave of half of Nyquist's frequency to 1e-6."""
_MOST_PIECES = 1_000_000
_MOST_NODES = 4096
"""Summed at once."""


def path_kernel(points: torch.Tensor) -> ContinuousKernel:
    """Describe a motion at an even speed from one point of a path to the next, centered on its mean over time.

    Its transform is the integral of exp(−2πi f·x) over time, by the rule of Gauss and Legendre on pieces of each line.
    The points have the shape `(n, 3)`: time, y (downwards) and x of each, y and x in pixels.
    """
    durations, places = points[:, 0].diff(), points[:, 1:]
    shares = durations / durations.sum()
    places = places - (shares[:, None] * (places[1:] + places[:-1]) / 2).sum(0)
    reach = tuple(float(along.abs().max()) for along in places.T)
    check_length(max(*reach, 1e-9), "the path")
    at, weights = _nodes(places, shares)

    def transform(fy: torch.Tensor, fx: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(fy + fx, dtype=torch.complex128)
        for part, weight in zip(at.split(_MOST_NODES), weights.split(_MOST_NODES), strict=True):
            rows, columns = (
                torch.exp(-2j * math.pi * f.reshape(-1, 1) * place) for f, place in zip((fy, fx), part.T, strict=True)
            )
            total += (rows * weight) @ columns.T
        return total

    return ContinuousKernel(reach, transform)


def _nodes(places: torch.Tensor, shares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the nodes on the lines between places, shape `(n, 2)`, and their weights, shape `(n,)`."""
    steps = places.diff(dim=0)
    n_pieces = (steps.norm(dim=1) / _PIECE).ceil().clamp_min(1).long()
    if int(n_pieces.sum()) > _MOST_PIECES:
        raise UsageError(f"the path must be at most {_MOST_PIECES * _PIECE:g} pixels long; use a part of it.")
    line = torch.arange(len(steps)).repeat_interleave(n_pieces)
    first = torch.cat([n_pieces.new_zeros(1), n_pieces.cumsum(0)])[:-1]
    middles = (torch.arange(len(line)) - first[line] + 0.5) / n_pieces[line]
    ends = 0.5 * math.sqrt(0.6) / n_pieces[line]
    along = middles[:, None] + ends[:, None] * torch.tensor([-1, 0, 1])
    at = places[line, None] + along[:, :, None] * steps[line, None]
    weights = (shares / n_pieces)[line, None] * torch.tensor([5, 8, 5], dtype=torch.float64) / 18
    return at.flatten(0, 1), weights.flatten()


def read_path(name: str) -> torch.Tensor:
    """Read the points of a CSV file, shape `(n, 3)`: time, y and x of each.

    The file has a point a line, in columns named `x` (to the right), `y` (downwards) and `t` where the times between
    points differ; a file without names holds x and y.

    Raises:
        UsageError: the file does not exist, or does not list such points.
    """
    path = Path(name)
    try:
        rows = [row for row in csv.reader(path.read_text(encoding="utf-8-sig").splitlines()) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"the path '{shortened(name)}' is not a readable CSV file.") from error
    columns = ["x", "y"]
    if rows and not _numbers(rows[0]):
        columns, rows = [word.strip().lower() for word in rows[0]], rows[1:]
    found = [_numbers(row) for row in rows]
    is_whole = all(len(numbers) == len(columns) and all(map(math.isfinite, numbers)) for numbers in found)
    if not {"x", "y"} <= set(columns) or not is_whole or not 2 <= len(found) <= _MOST_POINTS:
        raise UsageError(
            f"'{shortened(name)}' should hold 2 to {_MOST_POINTS} points, one per line, with numbers in the columns "
            "x, y and perhaps t; x and y are in pixels."
        )
    table = torch.tensor(found, dtype=torch.float64)
    times = table[:, columns.index("t")] if "t" in columns else torch.arange(len(found), dtype=torch.float64)
    if not (times.diff() > 0).all():
        raise UsageError(f"the times of the path '{shortened(name)}' must increase from line to line.")
    return torch.stack([times, table[:, columns.index("y")], table[:, columns.index("x")]], dim=1)


def _numbers(row: list[str]) -> list[float]:
    """Read the numbers of a line; none where one is no number."""
    try:
        return [float(text) for text in row]
    except ValueError:
        return []


PATH = KernelSource(("FILE.csv",), path_kernel, read=read_path, example="shake.csv")
