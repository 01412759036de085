"""What cutting a piece of a picture changes in its estimate, by the distance from the cut.

A piece is restored twice: with generous surroundings, and cut. What differs, by the distance from the cut, is what a
block's estimate will differ from that of the whole picture, whatever the objective: nothing is assumed about the decay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from deconv_cli.blocks.axis_cut import AxisCut, Interval
from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.blocks.sample_windows import SampleWindow
from deconv_cli.operators.axes import space_axes
from deconv_cli.vocabulary import Size
from deconv_cli.workflows.pipeline import Pipeline
from deconv_cli.workflows.progress_listener import ProgressListener

N_MIDDLE = 16
"""Pixels in the middle of a piece, which are deeper than any halo."""


@dataclass(frozen=True, eq=False)
class CutInfluence:
    """What cutting one piece changed.

    Attributes:
        difference: the largest over all channels, shape `size`; zero at samples that are no more than bounds.
        depths: distances from the cut along each axis, each of shape `(n,)`; infinite where nothing is cut.
    """

    difference: Tensor
    depths: tuple[Tensor, ...]

    def beyond(self, halo: Sequence[float]) -> float:
        """Give the largest difference at pixels that are as deep as a halo along every axis."""
        inside = self.difference
        for axis, (depth, wanted) in enumerate(zip(self.depths, halo, strict=True)):
            inside = inside.index_select(axis, torch.nonzero(depth >= wanted)[:, 0])
        return float(inside.max()) if inside.numel() else 0.0


def measure_cut(
    problem: BlockProblem, window: SampleWindow, depth: Size, pipeline: Pipeline, progress: ProgressListener
) -> CutInfluence:
    """Restore one piece with its surroundings and without.

    Args:
        problem: what is restored.
        window: where.
        depth: how far the cut is looked at along each axis; 0 for one that no block is cut along.
        pipeline: restores.
        progress: follows both restorations.
    """
    size, cuts = problem.data_size, problem.cuts
    inner_sides = _inner_sides(depth, size)
    outer = window.data(outer_sides(depth, size), size)
    inner = tuple(
        _middle(o, side) if axis != window.frame_axis else _at_end(o, depth[axis], size[axis])
        for axis, (o, side) in enumerate(zip(outer, inner_sides, strict=True))
    )
    values = problem.read(window.batch, outer)
    whole = problem.restore(values, outer, pipeline, progress).image
    bounds = problem.find_bounds(values, outer, pipeline)
    axes = space_axes(len(size))
    for axis, (i, o) in zip(axes, zip(inner, outer, strict=True), strict=True):
        values = values.narrow(axis, i[0] - o[0], i[1] - i[0])
    cut = problem.restore(values.contiguous(), inner, pipeline, progress).image
    depths = []
    for axis, c, i, o in zip(axes, cuts, inner, outer, strict=True):
        inside, around = c.image_of(i), c.image_of(o)
        # Data that are cut near the frame reach beyond it, where the whole has no image.
        first, last = max(inside[0], around[0]), min(inside[1], around[1])
        cut = cut.narrow(axis, first - inside[0], last - first)
        whole = whole.narrow(axis, first - around[0], last - first)
        bounds = None if bounds is None else bounds.narrow(axis, first - around[0], last - first)
        depths.append(_depths(c, i, (first, last)))
    difference = (cut - whole).abs().flatten(0, cut.ndim - len(size) - 1).amax(0)
    difference = difference if bounds is None else difference.masked_fill(bounds, 0)
    return CutInfluence(difference.cpu(), tuple(depths))


def outer_sides(depth: Size, size: Size) -> Size:
    """Give the sides of a piece with its surroundings: half as many again as the cut is looked at."""
    return tuple(side + 2 * (d // 2) for side, d in zip(_inner_sides(depth, size), depth, strict=True))


def _inner_sides(depth: Size, size: Size) -> Size:
    return tuple(2 * d + N_MIDDLE if d else n for d, n in zip(depth, size, strict=True))


def _middle(outer: Interval, side: int) -> Interval:
    start = outer[0] + (outer[1] - outer[0] - side) // 2
    return start, start + side


def _at_end(outer: Interval, depth: int, n: int) -> Interval:
    """Give a part that is cut at one end alone, and reaches up to the frame at the other."""
    start, stop = outer
    return (start, stop - depth // 2) if start == 0 else (start + depth // 2, n)


def _depths(cut: AxisCut, data: Interval, image: Interval) -> Tensor:
    """Give the distance of image pixels from where data are cut, as a halo counts it."""
    place = torch.arange(*image, dtype=torch.float64) + cut.shift
    ahead = place - data[0] if cut.wraps or data[0] > 0 else torch.full_like(place, inf)
    behind = data[1] - 1 - place if cut.wraps or data[1] < cut.n_data else torch.full_like(place, inf)
    return torch.minimum(ahead, behind)
