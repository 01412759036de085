"""Pieces that are looked at before a run: several at a time, as cores and memory allow, since no worker has begun."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from deconv_cli.blocks.block_memory import SHARE, block_bytes
from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.blocks.sample_windows import SampleWindow
from deconv_cli.vocabulary import Size
from deconv_cli.workflows.progress_listener import ProgressListener, StepOf

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
