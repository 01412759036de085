"""How far the cut edge of a block reaches into its estimate, measured on pieces of the picture itself.

A piece is restored twice: with generous surroundings, and cut. What differs, by the distance from the cut, is what a
block's estimate will differ from that of the whole picture, whatever the objective: nothing is assumed about the decay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Any

import torch
from torch import Tensor

from deconv_cli.blocks.axis_cut import AxisCut, Interval
from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.blocks.sample_windows import SampleWindow
from deconv_cli.errors import UsageError
from deconv_cli.operators.axes import space_axes
from deconv_cli.vocabulary import Size
from deconv_cli.workflows.pipeline import Pipeline

SEAM_TOLERANCE = 1e-3
"""The largest difference from the whole picture that is planned for, as a part of the range of the samples."""
SAFETY = 5.0
"""A picture of many blocks has worse places than those that are looked at: so many times as bad, as is taken."""
N_FITTED = 3
"""Pieces that a halo is taken from; as many others judge it."""
FIRST_REACHES = 4
"""Halves of the kernel that are looked at first; more where that is not enough."""
MIN_DEPTH = 16
LAMBDA_STEP = 10
"""The influence of a cut fades about three times as fast under a λ that is so many times as large."""
N_MIDDLE = 16
"""Pixels in the middle of a piece, which are deeper than any halo."""


@dataclass(frozen=True)
class HaloChoice:
    """A halo, and what it leaves at the seams.

    Attributes:
        halo: image pixels around a block, along each axis of space.
        fitted: the largest difference on the pieces that it was chosen on, in units of the samples.
        judged: the same on other pieces.
        range: of the samples that were looked at.
    """

    halo: Size
    fitted: float
    judged: float
    range: float

    @property
    def predicted(self) -> float:
        """The largest difference that is to be expected anywhere, as a part of the range."""
        worst = SAFETY * max(self.fitted, self.judged)
        return worst / self.range if self.range > 0 else 0.0

    def as_record(self) -> dict[str, Any]:
        """Give the numbers as JSON can hold them."""
        return {"halo": list(self.halo), "fitted": self.fitted, "judged": self.judged, "range": self.range}

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> HaloChoice:
        """Read what `as_record` gave."""
        return cls(tuple(record["halo"]), record["fitted"], record["judged"], record["range"])


@dataclass(frozen=True, eq=False)
class CutInfluence:
    """What cutting one piece changed.

    Attributes:
        difference: the largest over all channels, shape `size`.
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


def measure_cut(problem: BlockProblem, window: SampleWindow, depth: Size, pipeline: Pipeline) -> CutInfluence:
    """Restore one piece with its surroundings and without.

    Args:
        problem: what is restored.
        window: where.
        depth: how far the cut is looked at along each axis; 0 for one that no block is cut along.
        pipeline: restores.
    """
    size, cuts = problem.data_size, problem.cuts
    inner_sides = [2 * d + N_MIDDLE if d else n for d, n in zip(depth, size, strict=True)]
    outer = window.data([side + 2 * (d // 2) for side, d in zip(inner_sides, depth, strict=True)], size)
    inner = tuple(_middle(o, side) for o, side in zip(outer, inner_sides, strict=True))
    values = problem.read(window.batch, outer)
    whole = problem.restore(values, outer, pipeline).image
    axes = space_axes(len(size))
    for axis, (i, o) in zip(axes, zip(inner, outer, strict=True), strict=True):
        values = values.narrow(axis, i[0] - o[0], i[1] - i[0])
    cut = problem.restore(values.contiguous(), inner, pipeline).image
    for axis, c, i, o in zip(axes, cuts, inner, outer, strict=True):
        first, last = c.image_of(i)
        whole = whole.narrow(axis, first - c.image_of(o)[0], last - first)
    difference = (cut - whole).abs().flatten(0, cut.ndim - len(size) - 1).amax(0).cpu()
    return CutInfluence(difference, tuple(_depths(c, i) for c, i in zip(cuts, inner, strict=True)))


def _middle(outer: Interval, side: int) -> Interval:
    start = outer[0] + (outer[1] - outer[0] - side) // 2
    return start, start + side


def _depths(cut: AxisCut, data: Interval) -> Tensor:
    """Give the distance of image pixels from where data are cut, as a halo counts it."""
    first, last = cut.image_of(data)
    place = torch.arange(first, last, dtype=torch.float64) + cut.pads[0] - (cut.n_taps - 1) // 2
    ahead = place - data[0] if cut.wraps or data[0] > 0 else torch.full_like(place, inf)
    behind = data[1] - 1 - place if cut.wraps or data[1] < cut.n_data else torch.full_like(place, inf)
    return torch.minimum(ahead, behind)


def choose_halo(
    problem: BlockProblem,
    windows: Sequence[SampleWindow],
    *,
    is_cut: Sequence[bool],
    max_samples: int,
    tolerance: float = SEAM_TOLERANCE,
) -> HaloChoice:
    """Find the smallest halo that keeps the blocks together.

    Args:
        problem: what is restored, with nothing left open.
        windows: pieces of the picture, those with the most contrast first.
        is_cut: whether blocks are cut along each axis of space.
        max_samples: data samples that a piece may have at most.
        tolerance: the largest difference from the whole, as a part of the range of the samples.

    Raises:
        UsageError: the influence reaches further than any piece that may be looked at.
    """
    span = max(window.highest for window in windows) - min(window.lowest for window in windows)
    if not any(is_cut):  # each image of a series fits
        return HaloChoice((0,) * len(is_cut), 0.0, 0.0, span)
    fitted, others = windows[:N_FITTED], windows[N_FITTED : 2 * N_FITTED]
    wanted = tolerance * span / SAFETY
    n_reaches, pipeline, looked_at = FIRST_REACHES, problem.pipeline(), 0
    while True:
        depth = _depth(problem, is_cut, n_reaches)
        if max(depth) <= looked_at or _n_samples(problem, depth) > max_samples:
            raise _too_deep(problem, looked_at, tolerance)
        # The first piece tells whether it is deep enough; the others are looked at but then.
        influences: list[CutInfluence] = []
        halo: Size | None = None
        for window in fitted:
            influences.append(measure_cut(problem, window, depth, pipeline))
            halo = smallest_halo(influences, depth, wanted)
            if halo is None:
                break
        if halo is not None:
            judges = [measure_cut(problem, window, depth, pipeline) for window in others]
            halo = smallest_halo([*influences, *judges], depth, wanted, at_least=halo)
            if halo is not None:
                return HaloChoice(halo, _worst(influences, halo), _worst(judges, halo), span)
        n_reaches, looked_at = 2 * n_reaches, max(depth)


def _too_deep(problem: BlockProblem, looked_at: int, tolerance: float) -> UsageError:
    """Say that blocks of this memory cannot be honest, and what would help."""
    settings = problem.resolution.settings
    less = "fewer iterations" if settings.iterations else "a larger weight"
    if settings.has_lambda:
        lam = max(problem.resolution.lams or (settings.lam,))
        less = f"a larger lam, such as lam={LAMBDA_STEP * lam:.1g}"
    return UsageError(
        f"the estimate depends on data further away than a block can hold: {looked_at} pixels from where they are cut "
        f"it is still off by more than {tolerance / SAFETY:.1g} of the range; use {less}, or more memory."
    )


def _depth(problem: BlockProblem, is_cut: Sequence[bool], n_reaches: int) -> Size:
    """Give how far to look along each axis: a piece and its surroundings must fit into the frame."""
    axes = zip(problem.cuts, is_cut, strict=True)
    return tuple(
        min(n_reaches * max(MIN_DEPTH // FIRST_REACHES, cut.n_taps // 2), (cut.n_data - N_MIDDLE) // 3) if is_one else 0
        for cut, is_one in axes
    )


def _n_samples(problem: BlockProblem, depth: Size) -> int:
    sides = zip(depth, problem.data_size, strict=True)
    return prod(3 * d + N_MIDDLE if d else n for d, n in sides)


def _worst(influences: Sequence[CutInfluence], halo: Sequence[float]) -> float:
    return max((influence.beyond(halo) for influence in influences), default=0.0)


def smallest_halo(
    influences: Sequence[CutInfluence], depth: Size, wanted: float, at_least: Size | None = None
) -> Size | None:
    """Find the smallest halo along each axis, then widen all alike until together they keep to what is wanted.

    Returns:
        `None` where even the whole depth does not.
    """
    n_cut = sum(d > 0 for d in depth)
    halo = []
    for axis, deepest in enumerate(depth):
        others = [float(d) for d in depth]
        low, high = (0 if at_least is None else at_least[axis]), deepest
        others[axis] = high
        if _worst(influences, others) > wanted / max(n_cut, 1):
            return None
        while low < high:
            others[axis] = middle = (low + high) // 2
            low, high = (low, int(middle)) if _worst(influences, others) <= wanted / n_cut else (int(middle) + 1, high)
        halo.append(low)
    while _worst(influences, halo) > wanted:
        if all(h >= d for h, d in zip(halo, depth, strict=True)):
            return None
        halo = [min(h + 1 + h // 16, d) for h, d in zip(halo, depth, strict=True)]
    return tuple(halo)
