"""Pieces of a large picture that are looked at in full resolution once it is restored."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from deconv_cli.blocks.axis_cut import Interval
from deconv_cli.blocks.block_problem import limit_threads
from deconv_cli.blocks.block_task import BlockTask
from deconv_cli.blocks.plan_extras import error_sides
from deconv_cli.blocks.sample_windows import distinct_windows, find_windows
from deconv_cli.workflows.diagnose import Diagnosis
from deconv_cli.workflows.lambda_series import LambdaView
from deconv_cli.workflows.reconstruction import Reconstruction

N_SHOWN = 2
"""Pieces that are shown: those with the most contrast of the places that are looked at."""


@dataclass(frozen=True, eq=False)
class ExaminedPiece:
    """One piece, restored as a block is.

    Attributes:
        data: where it lies in the data, along each axis of space.
        values: the data, shape `(1, C_out, *size)`.
        result: its estimate, of which no more is kept than what lies under the data.
    """

    data: tuple[Interval, ...]
    values: Tensor
    result: Reconstruction


@dataclass(frozen=True, eq=False)
class ExaminedPieces:
    """What is known of some pieces.

    Attributes:
        pieces: those with the most contrast first.
        diagnosis: of the first one.
        views: a detail of it under other λ.
    """

    pieces: tuple[ExaminedPiece, ...]
    diagnosis: Diagnosis
    views: tuple[LambdaView, ...]


def examine_pieces(task: BlockTask) -> ExaminedPieces:
    """Restore the pieces with the most contrast again, and look at the first one closely.

    Args:
        task: what was done to each block, with all that was decided.
    """
    limit_threads(task.plan.n_threads)
    problem, pipeline = task.problem, task.problem.pipeline()
    sides = error_sides(problem, task.plan.max_memory)
    windows = distinct_windows(find_windows(problem, sides), sides, problem.data_size)
    found: list[ExaminedPiece] = []
    diagnosis: Diagnosis | None = None
    views: tuple[LambdaView, ...] = ()
    for window in windows[:N_SHOWN]:
        data = window.data(sides, problem.data_size)
        values = problem.read(window.batch, data)
        result = problem.restore(values, data, pipeline, is_tested=True)
        if diagnosis is None:
            diagnosis = pipeline.diagnose(result, values)
            views = pipeline.vary_lambda(result, values, problem.source.dtype)
        found.append(ExaminedPiece(data, values.cpu(), replace(result, image=_under_data(task, result.image, data))))
    assert diagnosis is not None
    return ExaminedPieces(tuple(found), diagnosis, views)


def _under_data(task: BlockTask, image: Tensor, data: tuple[Interval, ...]) -> Tensor:
    """Cut the image pixels out that lie in the middle of what each datum is made of."""
    core = []
    for cut, (start, stop) in zip(task.problem.cuts, data, strict=True):
        first, last = cut.image_of((start, stop))
        core.append((max(start - cut.shift, first), min(stop - cut.shift, last)))
    return task.problem.crop(image, data, core).cpu()
