"""`path:FILE.csv`: a motion along any path.

The file has a point a line, its columns named `x` (to the right) and `y` (downwards) in pixels, and `t` if the times
between points are not equal: `x,y` or `t,x,y` on the first line. A file without names holds x and y.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

import torch

from deconv_cli.errors import UsageError
from deconv_cli.kernels.sources.kernel_source import ContinuousKernel, KernelSource, check_length
from deconv_cli.vocabulary import shortened

_MOST_POINTS = 100_000
_PIECE = 0.5
"""Pixels, on which three nodes integrate a wave of half of Nyquist's frequency to 1e-6."""
_MOST_PIECES = 1_000_000
_MOST_NODES = 4096
"""Summed at once."""


def path_kernel(points: torch.Tensor) -> ContinuousKernel:
    """Describe a motion that takes each line from one point to the next at an even speed.

    Its transform is the integral of exp(−2πi f·x) over time, by the rule of Gauss and Legendre on pieces of each line.

    Args:
        points: shape `(n, 3)`: time, y (downwards) and x of each, y and x in pixels.

    Returns:
        The path as a point is seen that moves along it, centered on its mean over time.

    Raises:
        UsageError: the path is too long.
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
        raise UsageError(f"the path should be no longer than {_MOST_PIECES * _PIECE:g} pixels; take a part of it.")
    line = torch.arange(len(steps)).repeat_interleave(n_pieces)
    first = torch.cat([n_pieces.new_zeros(1), n_pieces.cumsum(0)])[:-1]
    middles = (torch.arange(len(line)) - first[line] + 0.5) / n_pieces[line]
    ends = 0.5 * math.sqrt(0.6) / n_pieces[line]
    along = middles[:, None] + ends[:, None] * torch.tensor([-1, 0, 1])
    at = places[line, None] + along[:, :, None] * steps[line, None]
    weights = (shares / n_pieces)[line, None] * torch.tensor([5, 8, 5], dtype=torch.float64) / 18
    return at.flatten(0, 1), weights.flatten()


def read_path(name: str) -> torch.Tensor:
    """Read the points of a path.

    Args:
        name: of a CSV file.

    Returns:
        Shape `(n, 3)`: time, y and x of each.

    Raises:
        UsageError: the file does not exist, or does not list such points.
    """
    path = Path(name)
    try:
        rows = [row for row in csv.reader(path.read_text(encoding="utf-8-sig").splitlines()) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"the path '{shortened(name)}' should be a CSV file that can be read, but is not.") from error
    columns = ["x", "y"]
    if rows and not _numbers(rows[0]):
        columns, rows = [word.strip().lower() for word in rows[0]], rows[1:]
    found = [_numbers(row) for row in rows]
    is_whole = all(len(numbers) == len(columns) and all(map(math.isfinite, numbers)) for numbers in found)
    if not {"x", "y"} <= set(columns) or not is_whole or not 2 <= len(found) <= _MOST_POINTS:
        raise UsageError(
            f"'{shortened(name)}' should hold 2 to {_MOST_POINTS} points, one a line, with columns named x, y and "
            "maybe t, in pixels, all of them numbers."
        )
    table = torch.tensor(found, dtype=torch.float64)
    times = table[:, columns.index("t")] if "t" in columns else torch.arange(len(found), dtype=torch.float64)
    if not (times.diff() > 0).all():
        raise UsageError(f"the times of the path '{shortened(name)}' should grow from line to line.")
    return torch.stack([times, table[:, columns.index("y")], table[:, columns.index("x")]], dim=1)


def _numbers(row: list[str]) -> list[float]:
    """Read the numbers of a line; none where one is no number."""
    try:
        return [float(text) for text in row]
    except ValueError:
        return []


PATH = KernelSource(("FILE.csv",), path_kernel, read=read_path, example="shake.csv")
