"""`path:FILE.csv`: a motion along any path, by the exact length of each of its lines in each pixel.

The file has a point a line, its columns named `x` (to the right) and `y` (downwards) in pixels, and `t` if the times
between points are not equal: `x,y` or `t,x,y` on the first line. A file without names holds x and y.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

import torch

from deconv_cli.errors import UsageError
from deconv_cli.kernels.sources.kernel_source import KernelSource, pixels_reached, unit_sum
from deconv_cli.kernels.sources.traced_line import trace_line
from deconv_cli.vocabulary import shortened

_MOST_POINTS = 100_000


def path_kernel(points: torch.Tensor) -> torch.Tensor:
    """Blur by a motion that takes each line from one point to the next at an even speed.

    Args:
        points: shape `(n, 3)`: time, y (downwards) and x of each, y and x in pixels.

    Returns:
        Taps of a cross-correlation, shape `(kH, kW)`, both odd, float64, sum 1, centered on the mean of the path over
        time: a point of the picture becomes the path as it is seen.

    Raises:
        UsageError: the path is too long.
    """
    durations, places = points[:, 0].diff(), points[:, 1:]
    middles = (places[1:] + places[:-1]) / 2
    # Taps of a cross-correlation are turned by half a turn against what a point becomes.
    places = (durations[:, None] * middles).sum(0) / durations.sum() - places
    reach = [pixels_reached(max(float(along.abs().max()), 1e-9), "the path") for along in places.T]
    taps = torch.zeros([2 * n + 1 for n in reach], dtype=torch.float64)
    for start, end, duration in zip(places, places[1:], durations, strict=False):
        trace_line(taps, start, end, float(duration))
    return unit_sum(taps)


def read_path(name: str) -> torch.Tensor:
    """Read the points of a path.

    Args:
        name: of a CSV file.

    Returns:
        Shape `(n, 3)`: time, y and x of each.

    Raises:
        UsageError: no such file, or none of such points.
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


# Made finer, the times are multiplied too, which changes nothing: only their shares count.
PATH = KernelSource(("FILE.csv",), path_kernel, along=(-1,), read=read_path)
