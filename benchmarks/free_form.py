"""Is a camera shake of any path found from the photograph alone, well enough to restore it?

Eight curved paths, drawn from seeds, blur eight photographs in linear light, as parts of larger scenes, with noise of
0.5 % of white. No constant of the search was set on them: those were set on photographs of scikit-image, under paths of
other seeds. Judged as Levin, Weiss, Durand and Freeman do, Understanding and evaluating blind deconvolution algorithms,
CVPR 2009: the squared error of what is restored with the kernel that was found, over that with the true kernel.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor
from torch.nn.functional import conv2d, unfold

import deconv_cli
from benchmarks.blind import PHOTOGRAPHS, load_scene
from benchmarks.measuring import Case, Figures, Scale
from benchmarks.printing import Report, Table, Target
from deconv_cli.kernels.blind.free_form import free_form

NAMES = tuple(PHOTOGRAPHS)[:8]
PATHS = ((0, 13), (1, 15), (2, 17), (3, 19), (4, 21), (5, 23), (6, 25), (7, 27))
"""Seed, and pixels along the longer side of the box around the path."""
SLACK = 4
"""Taps that the support is larger than the path: nobody knows its size exactly."""
SIZE = 255
NOISE = 0.005
MARGIN = 16
"""Pixels along the edges that are not judged."""
MOST_SHIFT = 20
MOST_RATIO = 3.0
LUMINANCE = (0.2126, 0.7152, 0.0722)


def cases(scale: Scale) -> list[Case]:
    """List what is measured."""
    size, paths = scale.pick(SIZE, 128), scale.pick(PATHS, PATHS[:1])
    return [
        Case(name, shaken, {"name": name, "size": size, "paths": paths}, "sklearn", limit_s=7200.0)
        for name in scale.pick(NAMES, NAMES[:1])
    ]


def shaken(name: str, size: int, paths: list[list[int]]) -> Figures:
    """Look for every path in one photograph."""
    torch.set_num_threads(1)
    light = torch.tensordot(torch.tensor(LUMINANCE, dtype=torch.float64), load_scene(name), dims=1).float()
    figures: Figures = {}
    for seed, length in paths:
        kernel, title = camera_shake(seed, length), f"path {seed}"
        truth = _middle(light, size + length - 1)
        generator = torch.Generator().manual_seed(seed)
        y = conv2d(truth[None, None], kernel[None, None])[0, 0]
        y = y + NOISE * torch.randn(y.shape, generator=generator)
        started = time.perf_counter()
        found = free_form(y, torch.full((3, 3), 1 / 9), size=length + SLACK).taps.float()
        figures[f"{title}: seconds"] = time.perf_counter() - started
        best = deconv_cli.invert(y[None], kernel, boundary="unknown", penalty="gradient", lam="auto")
        estimate = deconv_cli.invert(y[None], found, boundary="unknown", penalty="gradient", lam=best.lam)
        error = squared_error(best.image[0], truth)
        figures[f"{title}: ratio"] = squared_error(estimate.image[0], truth) / error
        figures[f"{title}: as it came"] = squared_error(y, truth) / error
    return figures


def report(outcomes: dict[str, Figures]) -> Report:
    """Compare."""
    known = {name: figures for name, figures in outcomes.items() if "failed" not in figures}
    values = {
        what: [float(figures[key]) for figures in known.values() for key in figures if key.endswith(f": {what}")]
        for what in ("ratio", "as it came", "seconds")
    }
    shares = {what: [value < MOST_RATIO for value in values[what]] for what in ("ratio", "as it came")}
    share = 100 * statistics.fmean(shares["ratio"]) if known else None
    targets = [
        Target(
            f"paths found so that the error ratio is below {MOST_RATIO:g}",
            75.0,
            share,
            is_floor=True,
            unit=" %",
            note=f" of {len(values['ratio'])}",
        ),
        Target("seconds a picture, median", 60.0, statistics.median(values["seconds"]) if known else None, unit=" s"),
    ]
    rows = [
        [name, *(f"{float(figures.get(f'path {seed}: ratio', float('nan'))):.2f}" for seed, _ in PATHS)]
        for name, figures in known.items()
    ]
    failures = [[name, str(figures["failed"])] for name, figures in outcomes.items() if "failed" in figures]
    title = (
        "Error ratios, both with the λ that is chosen for the true kernel, after the best shift in quarters of pixels. "
        "The search starts from a box of 3 × 3 taps, and its support is given four taps more than the path needs."
    )
    if known:
        title += (
            f" The median is {statistics.median(values['ratio']):.2f}; of the unrestored pictures "
            f"{statistics.median(values['as it came']):.2f}, with {100 * statistics.fmean(shares['as it came']):.0f} % "
            f"below {MOST_RATIO:g}."
        )
    tables = [Table(title, ["photograph", *(f"path of {length} px" for _, length in PATHS)], rows)]
    if failures:
        tables.append(Table("Not measured:", ["photograph", "why"], failures))
    return Report("Kernels of free form: camera shake", targets, tables)


def camera_shake(seed: int, length: int) -> Tensor:
    """Draw a curved path, a cubic spline through a random walk, shape `(length, length)`, sum 1."""
    generator = torch.Generator().manual_seed(seed)
    walk = torch.randn(6, 2, generator=generator, dtype=torch.float64).cumsum(0)
    walk = torch.cat([2 * walk[:1] - walk[1:2], walk, 2 * walk[-1:] - walk[-2:-1]])
    at = torch.linspace(0, 1, 401, dtype=torch.float64)[:-1, None]
    weights = ((1 - at) ** 3, 3 * at**3 - 6 * at**2 + 4, -3 * at**3 + 3 * at**2 + 3 * at + 1, at**3)
    pieces = [sum(w * p for w, p in zip(weights, walk[i : i + 4], strict=True)) / 6 for i in range(len(walk) - 3)]
    path = torch.cat([torch.as_tensor(piece) for piece in pieces])
    low, high = path.amin(0), path.amax(0)
    path = (path - (low + high) / 2) / (high - low).max() * (length - 2) + (length - 1) / 2
    first = path.floor()
    taps = torch.zeros(length + 1, length + 1, dtype=torch.float64)
    for corner in torch.cartesian_prod(torch.arange(2), torch.arange(2)):
        rows, columns = (first.long() + corner).unbind(1)
        taps.index_put_((rows, columns), (1 - (path - first - corner).abs()).prod(1), accumulate=True)
    return (taps / taps.sum())[:length, :length].float()


def squared_error(image: Tensor, truth: Tensor) -> float:
    """Sum the squared errors within the margin, after the best shift: the place of a kernel cannot be known.

    Args:
        image: shape `(n, n)`.
        truth: the scene, which reaches equally far beyond the image on all sides.
    """
    middle = image[MARGIN:-MARGIN, MARGIN:-MARGIN]
    beyond = (len(truth) - len(image)) // 2 + MARGIN - MOST_SHIFT
    errors = {}
    for row in range(-MOST_SHIFT, MOST_SHIFT + 1):
        for column in range(-MOST_SHIFT, MOST_SHIFT + 1):
            errors[row, column] = float((middle - _at(truth, beyond, row, column, len(middle))).square().sum())
    row, column = min(errors, key=errors.__getitem__)
    target = _at(truth, beyond, row, column, len(middle))
    quarters = torch.arange(-3, 4) / 4
    columns = unfold(image[None, None, MARGIN - 2 : 2 - MARGIN, MARGIN - 2 : 2 - MARGIN], 5)[0]
    taps = torch.stack([torch.outer(_cubic(a), _cubic(b)).flatten() for a in quarters for b in quarters])
    return float((taps @ columns - target.reshape(1, -1)).square().sum(1).min())


def _at(truth: Tensor, beyond: int, row: int, column: int, size: int) -> Tensor:
    top, left = beyond + MOST_SHIFT + row, beyond + MOST_SHIFT + column
    return truth[top : top + size, left : left + size]


def _cubic(shift: Tensor) -> Tensor:
    """Interpolate at a shift below a pixel, shape `(5,)`: Keys, Cubic convolution interpolation, 1981."""
    d = (torch.arange(-2, 3) - shift).abs()
    return torch.where(
        d <= 1, 1.5 * d**3 - 2.5 * d**2 + 1, torch.where(d < 2, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2, 0 * d)
    )


def _middle(plane: Tensor, size: int) -> Tensor:
    top, left = ((n - size) // 2 for n in plane.shape)
    return plane[top : top + size, left : left + size].contiguous()
