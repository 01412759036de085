"""A run over blocks: what is still to be done is handed to a scheduler, and noted when it is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deconv_cli.blocks.block_ledger import BlockLedger
from deconv_cli.blocks.block_task import BlockResult, BlockTask
from deconv_cli.blocks.thumbnail import ThumbnailPart
from deconv_cli.schedulers.scheduler import Scheduler

BlockListener = Callable[[int, int], None]
"""Is called with the number of blocks that are done and of all."""


@dataclass(frozen=True)
class BlockSummary:
    """What came of all blocks together.

    Attributes:
        n_blocks: how many there are.
        n_redone: those that this run restored; the others were done before.
        residual: ‖y − Ax̂‖ / ‖y‖, over the data of all blocks.
        residual_rms: root mean square of y − Ax̂.
        n_iterations: of the solver, the most in any block.
        certificate: the largest of any block.
        n_unsolved: blocks in which the solver did not reach what was asked for.
        n_clipped: samples that the type of the result could not hold.
        lowest: value of the estimate.
        highest: value of the estimate.
        seam: the largest difference beside a seam that was measured; `None` where none was.
        n_seams: seams that were measured.
        seconds: that all blocks took together.
        predicted_error: root mean square of the error that is to be expected; `None` where it is not predicted.
        trusted_share: part of the pixels that are trusted.
        real_error: the same of the real one; `None` where no truth is known.
        thumbnails: parts of small pictures of the whole, where they were asked for.
    """

    n_blocks: int
    n_redone: int
    residual: float
    residual_rms: float
    n_iterations: int
    certificate: float
    n_unsolved: int
    n_clipped: int
    lowest: float
    highest: float
    seam: float | None
    n_seams: int
    seconds: float
    predicted_error: float | None = None
    trusted_share: float = 0.0
    real_error: float | None = None
    thumbnails: tuple[ThumbnailPart, ...] = ()

    @classmethod
    def of(cls, results: Sequence[BlockResult], n_redone: int) -> BlockSummary:
        """Pool blocks."""
        squared = math.fsum(result.squared_residual for result in results)
        data = math.fsum(result.squared_data for result in results)
        seams = [result.seam for result in results if result.seam is not None]
        return cls(
            n_blocks=len(results),
            n_redone=n_redone,
            residual=math.sqrt(squared / data) if data > 0 else 0.0,
            residual_rms=math.sqrt(squared / sum(result.n_samples for result in results)),
            n_iterations=max(result.n_iterations for result in results),
            certificate=max(result.certificate for result in results),
            n_unsolved=sum(not result.is_solved for result in results),
            n_clipped=sum(result.n_clipped for result in results),
            lowest=min(result.lowest for result in results),
            highest=max(result.highest for result in results),
            seam=max(seams, default=None),
            n_seams=len(seams),
            seconds=math.fsum(result.seconds for result in results),
            predicted_error=_root_mean_square(results, [result.squared_predicted for result in results]),
            trusted_share=_mean_share(results),
            real_error=_root_mean_square(results, [result.squared_error for result in results]),
            thumbnails=tuple(part for result in results for part in result.thumbnails),
        )

    def as_record(self) -> dict[str, Any]:
        """Give the numbers as JSON can hold them."""
        return {name: value for name, value in vars(self).items() if name != "thumbnails"}


def _mean_share(results: Sequence[BlockResult]) -> float:
    """Average the trusted shares of blocks over the samples of the estimate."""
    n_samples = sum(result.n_estimated for result in results)
    return math.fsum(result.trusted_share * result.n_estimated for result in results) / max(n_samples, 1)


def _root_mean_square(results: Sequence[BlockResult], squares: Sequence[float | None]) -> float | None:
    """Pool sums of squares over the samples of the estimate."""
    known = [square for square in squares if square is not None]
    if len(known) < len(results):
        return None
    return math.sqrt(math.fsum(known) / sum(result.n_estimated for result in results))


def run_blocks(
    task: BlockTask,
    ledger: BlockLedger,
    scheduler: Scheduler,
    progress: BlockListener | None = None,
    numbers: Sequence[int] | None = None,
) -> BlockSummary | None:
    """Restore all blocks that are not done yet.

    Args:
        task: restores and writes one.
        ledger: what is done.
        scheduler: who does it.
        progress: is called with the number of blocks that are done and of all.
        numbers: the blocks that this run is for; `None` for all.

    Returns:
        What came of them; `None` where blocks are left, or were lost, that this run is not for.

    Raises:
        BlocksDisagreeError: a seam was measured that is above what was planned for.
        DeconvError: a block failed; those that are done are noted. Or the input is another one by now.
    """
    numbers = task.grid.order() if numbers is None else numbers
    held = _held_blocks(task, ledger, numbers)
    waiting = [number for number in numbers if number not in held]
    if progress is not None:
        progress(len(numbers) - len(waiting), len(numbers))
    n_done = len(numbers) - len(waiting)
    failures: list[Exception] = []
    for finished in scheduler.run(task, waiting):
        if error := finished.error or (finished.result and task.find_disagreement(finished.result)):
            failures.append(error)
            break
        assert finished.result is not None
        ledger.add(finished.result)
        n_done += 1
        if progress is not None:
            progress(n_done, len(numbers))
    if failures:
        raise failures[0]
    results = ledger.results()
    every = range(task.grid.n_blocks)
    if set(every) - results.keys() or not all(task.holds(results[n]) for n in set(every) - set(numbers)):
        return None
    return BlockSummary.of([results[number] for number in every], len(waiting))


def _held_blocks(task: BlockTask, ledger: BlockLedger, numbers: Sequence[int]) -> set[int]:
    """Find the blocks that are done and that the files hold unchanged; make room for the others."""
    results = ledger.results()
    done = {number: results[number] for number in numbers if number in results}
    for result in done.values():
        task.check_data(result)
    are_kept = [target.create() for target in task.targets if target.is_begun()]
    held = {number for number, result in done.items() if all(are_kept) and task.holds(result)}
    if len(held) == len(numbers):
        return held
    # A file that is gone, or in its place already, is made anew, and then holds no block.
    were_there = [target.create() for target in task.targets]
    return held if all(were_there) else set()
