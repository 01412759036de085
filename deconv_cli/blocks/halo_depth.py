"""How wide a halo must be: the smallest that leaves no more at the seams than is allowed, on pieces of the picture."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, log, prod
from typing import Any

from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.blocks.cut_influence import N_MIDDLE, CutInfluence, measure_cut, outer_sides
from deconv_cli.blocks.sample_windows import SampleWindow, covering_windows, map_pieces, workers_for
from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import Size, format_size
from deconv_cli.workflows.progress_listener import ProgressListener

MUCH_FASTER = 6.0
"""How much faster what is left may fall further out than it fell between two depths that were looked at.

Of two photographs under disks of two sizes, with λ from 1e-5 to 0.03, it fell up to 3.3 times as fast; where it hardly
fell at first, by up to 2.3 e-folds from a depth to one twice that. Of two others under disks, motion, a Gaussian and a
box, λ from 1e-6 to 0.03, and by Richardson–Lucy, 58 of 60 refusals were foreseen, and none of 28 agreements given up.
"""
LEAST_FALL = 3.0
"""E-folds by which it may fall from any depth to one twice that, however little it fell before."""


class SlowDecay:
    """Follows what a cut leaves at one depth after another.

    Args:
        deepest: pixels that may be looked at, at most.
        wanted: what may be left, in units of the samples.
    """

    def __init__(self, deepest: int, wanted: float) -> None:
        self._deepest, self._wanted = deepest, wanted
        self._depth, self._left = 0, inf

    def is_hopeless_at(self, depth: int, left: float) -> bool:
        """Take note of what is left at the next depth, and tell whether too much will be left at the deepest one."""
        passed, fallen = depth - self._depth, log(self._left / left) if left > 0 else inf
        is_first, self._depth, self._left = self._depth == 0, depth, left
        if is_first or fallen == inf or self._wanted <= 0:
            return False
        steepness = max(MUCH_FASTER * fallen / passed, LEAST_FALL / depth)
        return log(left / self._wanted) > (self._deepest - depth) * steepness


SEAM_TOLERANCE = 1e-3
"""The largest difference from the whole picture that is planned for, as a part of the range of the samples."""
SAFETY = 5.0
"""A picture of many blocks has worse places than those that are looked at: so many times as bad, as is taken."""
N_FITTED = 3
"""Pieces that a halo is taken from, at most; as many others judge it."""
N_AT_FRAME = 4
"""Pieces that the halo at the frame is taken from, where blocks have seams along two axes."""
HARDLY_MORE, N_PARTS = 1.1, 8
"""Where no depth is enough: what a part of it may leave, in times of what all of it leaves, and how many parts."""
FIRST_REACHES = 4
"""Halves of the kernel that are looked at first; more where that is not enough."""
MIN_DEPTH = 16
FLAT = 0.01
"""The smallest range of pieces that is believed, as a part of their largest value."""
LEAST_SAMPLES = N_MIDDLE + 3
"""Along an axis that is cut, so that there is a depth to look at."""


class BlocksDisagreeError(UsageError):
    """Blocks of this picture would differ from the whole by more than seams may; says why, but not what would help."""


@dataclass(frozen=True)
class HaloChoice:
    """A halo, and what it leaves at the seams.

    Attributes:
        halo: image pixels around a block inside the frame, along each axis of space.
        at_frame: the same around a block that reaches the frame: along an edge a cut is felt further.
        fitted: the largest difference on the pieces that it was chosen on, in units of the samples.
        judged: the same on other pieces inside, and on those at the frame.
        range: of the samples that were looked at.
    """

    halo: Size
    at_frame: Size
    fitted: float
    judged: float
    range: float

    @property
    def predicted(self) -> float:
        """The largest difference that is to be expected anywhere, as a part of the range."""
        worst = SAFETY * max(self.fitted, self.judged)
        return worst / self.range if self.range > 0 else 0.0

    def __str__(self) -> str:
        wider = "" if self.at_frame == self.halo else f" ({format_size(self.at_frame)} at the frame)"
        return f"{format_size(self.halo)}{wider}"

    def widened(self, least: Size) -> HaloChoice:
        """Make both halos at least this wide along each axis."""
        inside, at_frame = (tuple(map(max, narrow, least)) for narrow in (self.halo, self.at_frame))
        return replace(self, halo=inside, at_frame=at_frame)

    def as_record(self) -> dict[str, Any]:
        """Give the numbers as JSON can hold them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> HaloChoice:
        """Read what `as_record` gave."""
        return cls(**record | {name: tuple(record[name]) for name in ("halo", "at_frame")})


def seam_limit(windows: Sequence[SampleWindow]) -> float:
    """Give the largest difference from the whole picture that is allowed on pieces, in units of the samples."""
    return SEAM_TOLERANCE * range_of(windows) / SAFETY


def range_of(windows: Sequence[SampleWindow]) -> float:
    """Give the range of the samples that were looked at; in flat pieces, what rounding leaves is far below it."""
    highest, lowest = max(window.highest for window in windows), min(window.lowest for window in windows)
    return max(highest - lowest, FLAT * max(abs(highest), abs(lowest)))


def choose_halo(
    problem: BlockProblem,
    windows: Sequence[SampleWindow],
    *,
    is_cut: Sequence[bool],
    max_samples: int,
    progress: ProgressListener,
    is_trial: bool = False,
) -> HaloChoice:
    """Find the smallest halo that keeps the blocks together.

    Args:
        problem: what is restored, with nothing left open.
        windows: pieces of the picture, those with the most contrast first.
        is_cut: whether blocks are cut along each axis of space.
        max_samples: data samples that a piece may have at most.
        progress: is notified which piece is looked at, how deep.
        is_trial: whether the piece with the most contrast tells enough.

    Returns:
        The halo. Where none is wide enough for edge pixels of the frame, one with what it leaves there, which may be
        more than `SEAM_TOLERANCE`.

    Raises:
        BlocksDisagreeError: the influence reaches further than any piece inside the frame that may be looked at.
        UsageError: an axis that is cut has too few samples for any piece.
    """
    if not any(is_cut):  # each image of a series fits
        none = (0,) * len(is_cut)
        return HaloChoice(none, none, 0.0, 0.0, range_of(windows))
    shortest = min(cut.n_data for cut, is_one in zip(problem.cuts, is_cut, strict=True) if is_one)
    if shortest < LEAST_SAMPLES:
        raise UsageError(
            f"an axis of {shortest} samples is too short to be cut into blocks: it takes {LEAST_SAMPLES} to measure "
            "how far a cut reaches; give blocks that have the whole of it."
        )
    depths, deepest = _depths(problem, is_cut, max_samples)
    decay, looked_at, inside = SlowDecay(deepest, seam_limit(windows)), 0, None
    for depth in depths:
        found, is_enough, left = _halo_within(problem, windows, depth, progress, is_trial=is_trial)
        if is_enough or inside is not None:  # for the frame alone it is looked once deeper
            found = found or inside
            assert found is not None
            return found
        inside, looked_at = found, max(depth)
        if inside is None and decay.is_hopeless_at(looked_at, left):
            break
    if inside is not None:
        return inside
    raise _disagreement(looked_at, deepest)


def _disagreement(looked_at: int, deepest: int) -> BlocksDisagreeError:
    """Say why blocks disagree."""
    if not looked_at:
        return BlocksDisagreeError(
            f"the memory holds no piece from which it could be measured how far a cut reaches: {deepest} pixels on "
            "either side are looked at first"
        )
    return BlocksDisagreeError(
        f"the estimate depends on data further away than a block can hold: {looked_at} pixels from where they are cut "
        f"it is still off by more than {SEAM_TOLERANCE / SAFETY:.1g} of the range"
    )


def _depths(problem: BlockProblem, is_cut: Sequence[bool], max_samples: int) -> tuple[list[Size], int]:
    """List how deep is looked: each time twice as deep, and at last as deep as frame and memory admit.

    Returns:
        The depths; and how many pixels would be looked at next, as far as the frame goes: no depth is larger.
    """
    depths: list[Size] = []

    def is_next(depth: Size) -> bool:
        is_deeper = not depths or max(depth) > max(depths[-1])
        return is_deeper and prod(outer_sides(depth, problem.data_size)) <= max_samples

    n_reaches = FIRST_REACHES
    while is_next(depth := _depth(problem, is_cut, n_reaches)):
        depths.append(depth)
        n_reaches *= 2
    if depths:
        between = (_depth(problem, is_cut, n) for n in range(n_reaches - 1, n_reaches // 2, -1))
        depths += itertools.islice(filter(is_next, between), 1)
    return depths, max(depth)


def _halo_within(
    problem: BlockProblem, windows: Sequence[SampleWindow], depth: Size, progress: ProgressListener, *, is_trial: bool
) -> tuple[HaloChoice | None, bool, float]:
    """Choose a halo on some pieces inside and judge it on others, and choose that at the frame on pieces there.

    Returns:
        The halo; `None` where pieces inside the frame want one that is wider than `depth`. Whether it is enough at the
        frame too. And what the whole depth leaves on pieces inside that were looked at.
    """
    wanted, pipeline = seam_limit(windows), problem.pipeline()
    sides = outer_sides(depth, problem.data_size)
    looked_at = covering_windows(problem, windows, sides, 2 * N_FITTED)
    n_fitted = (len(looked_at) + 1) // 2
    n_inside = len(looked_at)
    looked_at += _at_frames(problem, windows, depth)

    def measure(window: SampleWindow, progress: ProgressListener) -> CutInfluence:
        return measure_cut(problem, window, depth, pipeline, progress)

    # Flat pieces tell nothing: a pixel is seen by data as far away as the kernel reaches, and a penalty ties neighbors.
    least = tuple(min(max(cut.n_taps // 2, 1), d) for cut, d in zip(problem.cuts, depth, strict=True))
    # The first piece tells whether this is deep enough; the others are looked at only if it is.
    what = f"how far a cut reaches, up to {max(depth)} pixels"
    influences = map_pieces(measure, looked_at[:1], f"{what}, at first", progress)
    halo = smallest_halo(influences, depth, wanted, at_least=least)
    left = _worst(influences, depth)
    if halo is None:
        return None, False, left
    if is_trial:
        return HaloChoice(halo, halo, _worst(influences, halo), 0.0, range_of(windows)), True, left
    influences += map_pieces(measure, looked_at[1:], what, progress, workers_for(problem, sides))
    inside, beside = influences[:n_inside], influences[n_inside:]
    halo, left = smallest_halo(inside, depth, wanted, at_least=halo), _worst(inside, depth)
    if halo is None:
        return None, False, left
    if problem.resolution.has_bounds:
        halo = _alike(problem, halo, depth)
    enough = smallest_halo(beside, depth, wanted, at_least=halo)
    at_frame = enough or _no_worse(beside, depth, at_least=halo)
    judged = max(_worst(inside[n_fitted:], halo), _worst(beside, at_frame))
    found = HaloChoice(halo, at_frame, _worst(inside[:n_fitted], halo), judged, range_of(windows))
    return found, enough is not None, left


def _at_frames(problem: BlockProblem, windows: Sequence[SampleWindow], depth: Size) -> list[SampleWindow]:
    """Move pieces to the frame, to one end after another along axes that are cut: along an edge a cut is felt further.

    Pixels on the edge are known by few data, and under boundary `unknown` they hang together with those outside.

    Args:
        problem: what is restored.
        windows: those that are moved, of which there are some.
        depth: how far the cut is looked at along each axis.

    Returns:
        As many as `N_AT_FRAME`; none where no cut meets an edge along an axis that is cut itself.
    """
    axes = [axis for axis, (d, cut) in enumerate(zip(depth, problem.cuts, strict=True)) if d > 0 and not cut.wraps]
    if len(axes) < 2:  # the frame along an axis that is not cut is in every piece
        return []
    moved = []
    for number in range(N_AT_FRAME):
        axis, is_last = axes[number % len(axes)], (number + number // len(axes)) % 2
        sample = problem.data_size[axis] - 1 if is_last else 0
        moved.append(windows[number % len(windows)].at_frame(axis, sample))
    return moved


def _depth(problem: BlockProblem, is_cut: Sequence[bool], n_reaches: int) -> Size:
    """Give how far to look along each axis: a piece and its surroundings must fit into the frame."""
    axes = zip(problem.cuts, is_cut, strict=True)
    return tuple(
        min(n_reaches * max(MIN_DEPTH // FIRST_REACHES, cut.n_taps // 2), (cut.n_data - N_MIDDLE) // 3) if is_one else 0
        for cut, is_one in axes
    )


def _alike(problem: BlockProblem, halo: Size, depth: Size) -> Size:
    """Widen a halo to as many kernels along all axes: beside full samples, which are not compared, few seem enough."""
    sizes = [cut.n_taps for cut in problem.cuts]
    n_kernels = max(h / size for h, size in zip(halo, sizes, strict=True))
    return tuple(min(math.ceil(n_kernels * size), d) for size, d in zip(sizes, depth, strict=True))


def _worst(influences: Sequence[CutInfluence], halo: Sequence[float]) -> float:
    return max((influence.beyond(halo) for influence in influences), default=0.0)


def _no_worse(influences: Sequence[CutInfluence], depth: Size, at_least: Size) -> Size:
    """Find a halo narrower than `depth` that leaves hardly more: where an edge pixel is off, depth may not help."""
    goal = HARDLY_MORE * _worst(influences, depth)
    for n in range(N_PARTS):
        halo = tuple(max(least, -(-d * n // N_PARTS)) for d, least in zip(depth, at_least, strict=True))
        if _worst(influences, halo) <= goal:
            return halo
    return depth


def smallest_halo(influences: Sequence[CutInfluence], depth: Size, wanted: float, at_least: Size) -> Size | None:
    """Find the smallest halo along each axis, then widen all alike until together they keep to what is wanted.

    Returns:
        `None` where even the whole depth does not.
    """
    n_cut = sum(d > 0 for d in depth)
    halo = []
    for axis, deepest in enumerate(depth):
        others = [float(d) for d in depth]
        low, high = at_least[axis], deepest
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
