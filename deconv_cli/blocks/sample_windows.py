"""Pieces that are spread over a large picture, to choose from what is chosen once for all of it."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from deconv_cli.blocks.axis_cut import Interval
from deconv_cli.blocks.block_memory import SHARE, block_bytes
from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.diagnostics.stored_samples import NEARLY_FULL
from deconv_cli.io.regions import spread_place
from deconv_cli.vocabulary import Size
from deconv_cli.workflows.progress_listener import ProgressListener, StepOf

N_CANDIDATES, MOST_CANDIDATES = 9, 256
"""Places that are looked at, and how many where all are flat."""
MAX_SAMPLES = 2**18
"""Samples of a piece that choices are made from, at most."""


@dataclass(frozen=True, eq=False)
class SampleWindow:
    """One piece.

    Attributes:
        batch: of each axis that is neither space nor channels.
        center: the data sample in its middle, along each axis of space.
        lowest: sample of the piece.
        highest: sample of the piece.
        contrast: of the samples; see `contrast_of`.
        frame_axis: the axis of space along which it lies at an end of the frame; `None` where it lies anywhere.
    """

    batch: tuple[slice, ...]
    center: Size
    lowest: float
    highest: float
    contrast: float
    frame_axis: int | None = None

    def at_frame(self, axis: int, sample: int) -> SampleWindow:
        """Move it along an axis to the first sample, or the last one."""
        return replace(self, center=(*self.center[:axis], sample, *self.center[axis + 1 :]), frame_axis=axis)

    def data(self, sides: Sequence[int], data_size: Size) -> tuple[Interval, ...]:
        """Lay out a piece of given sides around the center, moved into the frame where it would reach beyond."""
        found = []
        for center, side, n in zip(self.center, sides, data_size, strict=True):
            start = max(0, min(center - side // 2, n - side))
            found.append((start, min(start + side, n)))
        return tuple(found)


def find_windows(problem: BlockProblem, sides: Size) -> list[SampleWindow]:
    """Look at places that are spread over the picture; gives them by contrast, the largest first.

    Args:
        problem: what is restored.
        sides: of the pieces, along each axis of space.
    """
    size, found = problem.data_size, list[SampleWindow]()
    for number in range(MOST_CANDIDATES):
        if number >= N_CANDIDATES and any(window.contrast > 0 for window in found):
            break
        batch, center = _place(problem, number)
        window = SampleWindow(batch, center, 0.0, 0.0, 0.0)
        values = problem.read(batch, window.data(sides, size)).double()
        lowest, highest = (float(end) for end in values.aminmax())
        found.append(SampleWindow(batch, center, lowest, highest, contrast_of(values, problem.white)))
    return sorted(found, key=lambda window: -window.contrast)


def distinct_windows(windows: Sequence[SampleWindow], sides: Size, data_size: Size) -> list[SampleWindow]:
    """Leave out pieces that are another one again, as several are in a picture that is hardly larger than a piece."""
    places = {(str(window.batch), window.data(sides, data_size)): window for window in reversed(windows)}
    return [window for window in windows if window in places.values()]


def covering_windows(
    problem: BlockProblem, windows: Sequence[SampleWindow], sides: Size, n_most: int
) -> list[SampleWindow]:
    """Take the first windows, no more than restore a small picture about once; two, where there are, to compare them.

    Args:
        problem: what is restored.
        windows: places, those with the most contrast first.
        sides: of the pieces, along each axis of space.
        n_most: how many are taken of a large picture.
    """
    n_covering = math.ceil(math.prod(problem.data_size) * problem.layout.n_batch / math.prod(sides))
    return distinct_windows(windows, sides, problem.data_size)[: min(n_most, max(2, n_covering))]


def contrast_of(values: Tensor, white: float | None) -> float:
    """Give the mean square of samples less their mean; those that are about white count as the mean.

    Cuts are compared at other samples alone, and the edge of a white background has next to none but those.
    """
    counted = values if white is None else values[values < NEARLY_FULL * white]
    return float((counted - counted.mean()).square().sum()) / values.numel() if counted.numel() else 0.0


def _place(problem: BlockProblem, number: int) -> tuple[tuple[slice, ...], Size]:
    """Give one of the places, no two of which lie in one row or one page."""
    lengths = [*(problem.layout.sizes[i] for i in problem.layout.batch_axes), *problem.data_size]
    places = spread_place(lengths, number)
    n_batch = len(problem.layout.batch_axes)
    return tuple(slice(at, at + 1) for at in places[:n_batch]), places[n_batch:]


Found = TypeVar("Found")
LookAt = Callable[[SampleWindow, ProgressListener], Found]
"""Restores a piece, and gives what was found; it may be called from several threads at once."""


def map_pieces(
    look_at: LookAt[Found], windows: Sequence[SampleWindow], what: str, progress: ProgressListener, n_workers: int = 1
) -> list[Found]:
    """Look at pieces, and give what was found in their order; each one is restored by as many threads as a block.

    Args:
        look_at: is done to each piece.
        windows: the pieces.
        what: is looked for, in words.
        progress: is notified which piece is looked at; how its iterations go on only where there is one at a time.
        n_workers: how many are looked at at a time, at most.
    """

    def name(number: int) -> str:
        return f"{what}: piece {number} of {len(windows)}"

    if n_workers == 1 or len(windows) == 1:
        return [look_at(window, StepOf(name(number), progress)) for number, window in enumerate(windows, start=1)]
    with ThreadPoolExecutor(n_workers) as pool:
        waiting = [pool.submit(look_at, window, ProgressListener()) for window in windows]
        found = []
        for number, future in enumerate(waiting, start=1):
            progress.begin(name(number))
            found.append(future.result())
    return found


def workers_for(problem: BlockProblem, sides: Size, *, is_tested: bool = False) -> int:
    """Count the pieces that can be looked at at a time, by the cores and by the memory of a block.

    Args:
        problem: what is restored.
        sides: of a piece, along each axis of space.
        is_tested: whether the residual is tested too.
    """
    most = problem.resolution.settings.max_memory
    if problem.device != "cpu" or most is None:
        return 1
    fitting = int(SHARE * most) // max(block_bytes(problem, sides, is_tested=is_tested), 1)
    n_cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(n_cores // torch.get_num_threads(), fitting))
