"""How wide a halo must be, measured on preview tiles.

Each tile is restored twice: with wide surroundings, and cut. The difference at each distance from the cut is the error
that a block will have there, under any objective. Nothing is assumed about how fast it decays.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, prod
from typing import TypeAlias

import torch
from torch import Tensor

from deconv_cli.blocks.block_grid import AxisCut, Interval
from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.blocks.preview_tiles import PreviewTile, covering_tiles, map_tiles
from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import Size, format_size
from deconv_cli.workflows.pipeline import Pipeline
from deconv_cli.workflows.progress_listener import ProgressListener

SEAM_TOLERANCE = 1e-3
"""The largest planned difference from the whole picture, as a part of the range of the samples."""
SAFETY = 5.0
"""Factor from the measured to the planned difference: a picture of many blocks has worse places than the tiles."""
N_INSIDE = 6
"""Tiles that choose the halo inside the frame, at most."""
N_AT_FRAME = 4
"""Tiles that choose the halo at the frame, if blocks have seams along two axes."""
HARDLY_MORE, N_PARTS = 1.1, 8
"""If no halo at the frame is wide enough: the factor by which a narrower one may be worse, and how many are tried."""
N_MIDDLE = 16
"""Pixels in the middle of a tile, deeper than any halo."""
LEAST_SAMPLES = N_MIDDLE + 3
"""Along an axis that is cut, so that there is a halo to measure."""
FIRST_REACHES, MOST_REACHES = 4, 64
"""The first depth and the last one, in halves of the kernel; each is twice as deep as the one before."""
MIN_DEPTH = 16
FLAT = 0.01
"""The smallest range of the tiles, as a part of their largest value."""


@dataclass(frozen=True)
class HaloChoice:
    """A halo, and the error at the seams that it leaves.

    Attributes:
        halo: image pixels around a block inside the frame, along each axis of space.
        at_frame: the same for a block that reaches the frame: the effect of a cut reaches further along an edge.
        worst, range: the largest difference on any tile, and the range of all tiles, in units of the samples.
    """

    halo: Size
    at_frame: Size
    worst: float
    range: float

    @property
    def predicted(self) -> float:
        """The largest difference to be expected anywhere, as a part of the range."""
        return SAFETY * self.worst / self.range if self.range > 0 else 0.0

    def __str__(self) -> str:
        wider = "" if self.at_frame == self.halo else f" ({format_size(self.at_frame)} at the frame)"
        return f"{format_size(self.halo)}{wider}"

    def widened(self, least: Size) -> HaloChoice:
        """Make both halos at least this wide along each axis."""
        inside, at_frame = (tuple(map(max, narrow, least)) for narrow in (self.halo, self.at_frame))
        return replace(self, halo=inside, at_frame=at_frame)


def choose_halo(
    problem: BlockProblem,
    tiles: Sequence[PreviewTile],
    is_cut: Sequence[bool],
    max_samples: int,
    progress: ProgressListener,
    advice: str = "use a larger max_memory",
) -> HaloChoice:
    """Find the smallest halo with which blocks agree, on tiles sorted by contrast, the largest first.

    All choices of the problem are made. `is_cut` says whether blocks are cut along each axis of space; a tile with its
    surroundings has at most `max_samples`. If no halo is wide enough for edge pixels of the frame, its prediction
    exceeds `SEAM_TOLERANCE`.

    Raises:
        UsageError: no halo that fits is wide enough inside the frame, or an axis that is cut has too few samples.
    """
    highest, lowest = max(tile.highest for tile in tiles), min(tile.lowest for tile in tiles)
    # What rounding leaves in flat tiles is far below this range.
    samples_range = max(highest - lowest, FLAT * max(abs(highest), abs(lowest)))
    if not any(is_cut):  # each image of a series fits
        none = (0,) * len(is_cut)
        return HaloChoice(none, none, 0.0, samples_range)
    shortest = min(cut.n_data for cut, is_one in zip(problem.cuts, is_cut, strict=True) if is_one)
    if shortest < LEAST_SAMPLES:
        raise UsageError(
            f"an axis of {shortest} samples is too short to be cut into blocks: measuring the halo needs "
            f"{LEAST_SAMPLES}; use blocks that contain the whole axis."
        )
    depths, inside = _depths(problem, is_cut, max_samples), None
    for depth in depths:
        found, is_enough = _halo_within(problem, tiles, depth, samples_range, progress)
        is_last, inside = is_enough or inside is not None, found or inside  # the frame alone is measured once deeper
        if is_last and inside is not None:
            return inside
    if inside is not None:
        return inside
    if not depths:
        raise UsageError(
            "the memory is too small for a piece that is large enough to measure the halo; use a larger max_memory."
        )
    raise UsageError(
        f"the estimate depends on data further away than a block can hold: {max(depths[-1])} pixels from a cut it is "
        f"still off by more than {SEAM_TOLERANCE / SAFETY:.1g} of the range; {advice}."
    )


def _depths(problem: BlockProblem, is_cut: Sequence[bool], max_samples: int) -> list[Size]:
    """List the depths to measure: each twice as deep as the one before, as far as frame and memory allow."""
    depths: list[Size] = []

    def depth_of(n_reaches: int) -> Size:
        """Return a depth along each axis; a tile and its surroundings have to fit into the frame."""
        axes = zip(problem.cuts, is_cut, strict=True)
        return tuple(
            min(n_reaches * _reach(cut), (cut.n_data - N_MIDDLE) // 3) if is_one else 0 for cut, is_one in axes
        )

    def is_next(depth: Size) -> bool:
        is_deeper = not depths or max(depth) > max(depths[-1])
        return is_deeper and prod(outer_sides(depth, problem.data_size)) <= max_samples

    n_reaches = FIRST_REACHES
    while n_reaches <= MOST_REACHES and is_next(depth := depth_of(n_reaches)):
        depths.append(depth)
        n_reaches *= 2
    if depths:
        between = map(depth_of, range(min(n_reaches - 1, MOST_REACHES), n_reaches // 2, -1))
        depths += itertools.islice(filter(is_next, between), 1)
    return depths


def _reach(cut: AxisCut) -> int:
    """Return half a kernel in pixels, or a few if it is small: what undoes a small kernel reaches further than it."""
    return max(cut.n_taps // 2, MIN_DEPTH // FIRST_REACHES)


def _halo_within(
    problem: BlockProblem, tiles: Sequence[PreviewTile], depth: Size, samples_range: float, progress: ProgressListener
) -> tuple[HaloChoice | None, bool]:
    """Choose a halo on tiles inside the frame, and the halo at the frame on tiles there.

    Gives the halo, or `None` if tiles inside need a wider one than `depth`; and whether it is wide enough at the frame.
    """
    allowed, pipeline = SEAM_TOLERANCE * samples_range / SAFETY, problem.pipeline()
    sides = outer_sides(depth, problem.data_size)
    inside = covering_tiles(problem, tiles, sides, N_INSIDE)

    def measure(tile: PreviewTile, progress: ProgressListener) -> CutInfluence:
        return measure_cut(problem, tile, depth, pipeline, progress)

    # Flat tiles show no effect, yet data depend on pixels within the kernel's reach, and a penalty ties neighbors.
    least = tuple(min(_reach(cut), d) for cut, d in zip(problem.cuts, depth, strict=True))
    # The first tile shows whether this depth is enough; the others are restored only if it is.
    what = f"measuring the effect of a cut, up to {max(depth)} pixels"
    influences = map_tiles(measure, inside[:1], f"{what}, at first", progress)
    if (halo := smallest_halo(influences, depth, allowed, least)) is None:
        return None, False
    others = [*inside[1:], *_at_frame(problem, tiles, depth)]
    influences += map_tiles(measure, others, what, progress)
    of_inside, of_frame = influences[: len(inside)], influences[len(inside) :]
    if (halo := smallest_halo(of_inside, depth, allowed, halo)) is None:
        return None, False
    if problem.resolution.has_bounds:
        halo = _widen_to_kernels(problem, halo, depth)
    enough = smallest_halo(of_frame, depth, allowed, halo)
    at_frame = enough or _hardly_worse(of_frame, depth, halo)
    worst = max(_worst(of_inside, halo), _worst(of_frame, at_frame))
    return HaloChoice(halo, at_frame, worst, samples_range), enough is not None


def _at_frame(problem: BlockProblem, tiles: Sequence[PreviewTile], depth: Size) -> list[PreviewTile]:
    """Move tiles to the ends of the axes that are cut, in turn: along an edge a cut reaches further.

    Few data determine the pixels on the edge, and under boundary `unknown` they depend on those outside. If only one
    axis is cut, every tile has the edges along the others, and no tile is moved.
    """
    axes = [axis for axis, d in enumerate(depth) if d > 0]
    if len(axes) < 2:
        return []
    moved = []
    for number in range(N_AT_FRAME):
        axis, is_last = axes[number % len(axes)], (number + number // len(axes)) % 2
        sample = problem.data_size[axis] - 1 if is_last else 0
        moved.append(tiles[number % len(tiles)].at_frame(axis, sample))
    return moved


def _widen_to_kernels(problem: BlockProblem, halo: Size, depth: Size) -> Size:
    """Widen a halo to as many kernels along all axes: it may be too narrow, as saturated samples are not compared."""
    sizes = [cut.n_taps for cut in problem.cuts]
    n_kernels = max(h / size for h, size in zip(halo, sizes, strict=True))
    return tuple(min(math.ceil(n_kernels * size), d) for size, d in zip(sizes, depth, strict=True))


CutInfluence: TypeAlias = tuple[Tensor, tuple[Tensor, ...]]
"""The change that a cut makes in one tile: the largest difference over all channels, shape `size`, zero at saturated
samples; and the distances from the cut along each axis, each of shape `(n,)`, infinite if nothing is cut there."""


def _worst(influences: Sequence[CutInfluence], halo: Sequence[float]) -> float:
    """Return the largest difference at pixels that are as deep as a halo along every axis."""
    worst = 0.0
    for inside, depths in influences:
        for axis, (depth, wanted) in enumerate(zip(depths, halo, strict=True)):
            inside = inside.index_select(axis, torch.nonzero(depth >= wanted)[:, 0])
        worst = max(worst, float(inside.max()) if inside.numel() else 0.0)
    return worst


def _hardly_worse(influences: Sequence[CutInfluence], depth: Size, at_least: Size) -> Size:
    """Find a narrower halo than `depth` with almost the same error: a wider one may not help the pixels on an edge."""
    goal = HARDLY_MORE * _worst(influences, depth)
    for n in range(N_PARTS):
        halo = tuple(max(least, -(-d * n // N_PARTS)) for d, least in zip(depth, at_least, strict=True))
        if _worst(influences, halo) <= goal:
            return halo
    return depth


def smallest_halo(influences: Sequence[CutInfluence], depth: Size, allowed: float, at_least: Size) -> Size | None:
    """Find the smallest halo along each axis, then widen all axes alike until the error is allowed.

    `None` if even the whole depth leaves a larger error.
    """
    n_cut = sum(d > 0 for d in depth)
    halo = []
    for axis, deepest in enumerate(depth):
        others = [float(d) for d in depth]
        if _worst(influences, others) > allowed / max(n_cut, 1):
            return None
        low, high = at_least[axis], deepest
        while low < high:
            others[axis] = middle = (low + high) // 2
            low, high = (low, middle) if _worst(influences, others) <= allowed / n_cut else (middle + 1, high)
        halo.append(low)
    while _worst(influences, halo) > allowed:
        if all(h >= d for h, d in zip(halo, depth, strict=True)):
            return None
        halo = [min(h + 1 + h // 16, d) for h, d in zip(halo, depth, strict=True)]
    return tuple(halo)


def measure_cut(
    problem: BlockProblem, tile: PreviewTile, depth: Size, pipeline: Pipeline, progress: ProgressListener
) -> CutInfluence:
    """Restore one tile with its surroundings and without; its depth is 0 along an axis that no block is cut along."""
    size, cuts = problem.data_size, problem.cuts
    inner_sides = _inner_sides(depth, size)
    outer = tile.data(outer_sides(depth, size), size)
    inner = tuple(
        _middle(o, side) if axis != tile.frame_axis else _at_end(o, depth[axis], size[axis])
        for axis, (o, side) in enumerate(zip(outer, inner_sides, strict=True))
    )
    values = problem.read(tile.batch, outer)
    whole = problem.restore(values, outer, pipeline, progress).image
    bounds = problem.find_bounds(values, outer, pipeline)
    cut = problem.restore(problem.read(tile.batch, inner), inner, pipeline, progress).image
    # Data that are cut near the frame reach beyond it, where the whole has no image.
    ends = [(*c.image_of(i), *c.image_of(o)) for c, i, o in zip(cuts, inner, outer, strict=True)]
    core = [(max(first, lowest), min(last, highest)) for first, last, lowest, highest in ends]
    difference = (problem.crop(cut, inner, core) - problem.crop(whole, outer, core)).abs()
    difference = difference.flatten(0, -len(size) - 1).amax(0)
    if bounds is not None:
        difference = difference.masked_fill(problem.crop(bounds, outer, core), 0)
    return difference.cpu(), tuple(map(_distances, cuts, inner, core))


def outer_sides(depth: Size, size: Size) -> Size:
    """Return the sides of a tile with surroundings of half its depth."""
    return tuple(side + 2 * (d // 2) for side, d in zip(_inner_sides(depth, size), depth, strict=True))


def _inner_sides(depth: Size, size: Size) -> Size:
    return tuple(2 * d + N_MIDDLE if d else n for d, n in zip(depth, size, strict=True))


def _middle(outer: Interval, side: int) -> Interval:
    start = outer[0] + (outer[1] - outer[0] - side) // 2
    return start, start + side


def _at_end(outer: Interval, depth: int, n: int) -> Interval:
    """Return a part that is cut at one end only, and reaches the frame at the other."""
    start, stop = outer
    return (start, stop - depth // 2) if start == 0 else (start + depth // 2, n)


def _distances(cut: AxisCut, data: Interval, image: Interval) -> Tensor:
    """Return the distance of image pixels from the cuts, as a halo counts it."""
    place = torch.arange(*image, dtype=torch.float64) + cut.shift
    ahead = place - data[0] if data[0] > 0 else torch.full_like(place, inf)
    behind = data[1] - 1 - place if data[1] < cut.n_data else torch.full_like(place, inf)
    return torch.minimum(ahead, behind)
