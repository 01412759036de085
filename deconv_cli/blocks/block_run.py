"""A run over blocks: planned or resumed, handed to a scheduler, noted block by block, and put in its place."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from deconv_cli.blocks.block_extras import NO_EXTRAS, BlockExtras, write_mask
from deconv_cli.blocks.block_plan import BlockOptions, fingerprint_of, plan_blocks
from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.blocks.block_reconstruction import BlockReconstruction, BlockSummary
from deconv_cli.blocks.block_task import BlockTask
from deconv_cli.blocks.checkpoint import Checkpoint, find_earlier, record_of
from deconv_cli.errors import UsageError
from deconv_cli.io.region_arrays import RegionTarget
from deconv_cli.schedulers.scheduler import JobShare, Scheduler
from deconv_cli.workflows.progress_listener import ProgressListener, as_listener

BlockListener = Callable[[int, int], None]
"""Is called with the number of blocks that are done and the number of all."""


@dataclass(frozen=True, eq=False)
class BlockRun:
    """A planned run; nothing of the result is written yet.

    `replaced` is the fingerprint of an earlier run with other settings, which is forgotten.
    """

    task: BlockTask
    checkpoint: Checkpoint
    is_resumed: bool = False
    planning_s: float = 0.0
    replaced: str | None = None

    def expected_seconds(self, n_workers: int) -> float:
        """Predict how long a run takes that this many workers share: planning, all blocks, and those across seams."""
        grid = self.task.grid
        n_samples = math.prod(grid.largest_data) * self.task.problem.layout.n_channels * grid.block(0).n_batch
        n_restored = grid.n_blocks + len(self.task.plan.seams)
        return self.planning_s + self.task.plan.seconds_a_sample * n_samples * n_restored / max(n_workers, 1)

    @classmethod
    def prepare(
        cls,
        problem: BlockProblem,
        target: RegionTarget,
        options: BlockOptions,
        *,
        extras: BlockExtras = NO_EXTRAS,
        resume: bool = False,
        force: bool = False,
        progress: ProgressListener | None = None,
    ) -> BlockRun:
        """Plan a run, or reuse the plan of an earlier one with the same input, kernel and settings.

        `force` removes the unfinished files of an earlier run that is not resumed.

        Raises:
            BlocksCompleteError: there is nothing to resume.
            UsageError: blocks would differ from the whole by more than seams may, or there is an earlier run.
            TooLargeError: the smallest block does not fit the memory.
        """
        started = time.perf_counter()
        checkpoint, files = Checkpoint.of(target.path), (*extras.targets, target)
        together = extras.with_units(target, problem.layout.dimensions)
        fingerprint = fingerprint_of(problem, together, options, extras)
        known = find_earlier(files, problem.source.path, checkpoint, fingerprint, resume=resume, force=force)
        if known is not None and known.fingerprint == fingerprint:
            settled = known.choices.settle(problem.with_settings(max_memory=known.max_memory))
            return cls(BlockTask(settled, known, target, extras), checkpoint, is_resumed=True)
        plan, settled = plan_blocks(problem, together, options, fingerprint, as_listener(progress))
        task, replaced = BlockTask(settled, plan, target, extras), None if known is None else known.fingerprint
        return cls(task, checkpoint, planning_s=time.perf_counter() - started, replaced=replaced)

    def numbers(self, share: JobShare | None = None) -> list[int]:
        """List the blocks of this run, or those of one of several jobs."""
        order = self.task.grid.order()
        return order if share is None else list(share.of(order))

    def finish(
        self,
        scheduler: Scheduler,
        describe: Callable[[BlockReconstruction], dict[str, Any]],
        progress: BlockListener | None = None,
        share: JobShare | None = None,
        conclude: Callable[[BlockReconstruction], None] = lambda _: None,
    ) -> BlockReconstruction:
        """Restore the remaining blocks, and put the result in its place once all blocks are done.

        `describe` makes the record that goes with the result; `progress` hears the number of blocks that are done, and
        of all. Of several jobs with a share each the last one to end puts the result in its place. `conclude` is called
        once it is there, also by a run that resumes one that was killed before.
        """
        if not self.is_resumed and share is None:
            self.checkpoint.remove()
            for target in self.task.targets:
                target.discard()
        else:
            self.checkpoint.forget(self.replaced)
        if share is None:
            self.checkpoint.forget_finishing()
        task = self._begun()
        numbers = replace(self, task=task).numbers(share)
        found = BlockReconstruction(task, run_blocks(task, self.checkpoint, scheduler, progress, numbers))
        if found.summary is None or not self.checkpoint.is_first_to_finish():
            return BlockReconstruction(task, None)
        _put_in_place(found, describe(found))
        conclude(found)
        self.checkpoint.remove()
        return found

    def _begun(self) -> BlockTask:
        """Write the plan, or take that of another job which began at the same time.

        Raises:
            UsageError: that job has other settings.
        """
        plan = self.checkpoint.write_plan(self.task.plan)
        if plan.fingerprint != self.task.plan.fingerprint:
            raise UsageError(
                f"another run, with another input, kernel or settings, is writing '{self.task.target.path}'; choose "
                "another name, or end that run and give force=True."
            )
        # Other machines round otherwise and have other memory, so the choices of the first one hold for all.
        problem = plan.choices.settle(self.task.problem.with_settings(max_memory=plan.max_memory))
        return replace(self.task, problem=problem, plan=plan)


def run_blocks(
    task: BlockTask,
    checkpoint: Checkpoint,
    scheduler: Scheduler,
    progress: BlockListener | None,
    numbers: Sequence[int],
) -> BlockSummary | None:
    """Restore those of some blocks that are not done; give all results, or `None` if blocks of other jobs are missing.

    Raises:
        DeconvError: a block failed, or the input has changed; the blocks that are done are noted.
    """
    done = _done_blocks(task, checkpoint, numbers)
    waiting = [number for number in numbers if number not in done]
    tell = progress or (lambda n_done, n_blocks: None)
    tell(len(done), len(numbers))
    failure: Exception | None = None
    for n_done, finished in enumerate(scheduler.run(task, waiting), start=len(done) + 1):
        if finished.result is None:
            failure = finished.error
            break
        checkpoint.add(finished.result)
        tell(n_done, len(numbers))
    if failure is not None:
        raise failure  # outside the loop, so that the scheduler ends first
    results = checkpoint.results()
    every = range(task.grid.n_blocks)
    if set(every) - results.keys() or not all(task.holds(results[n]) for n in set(every) - set(numbers)):
        return None
    return BlockSummary.of([results[number] for number in every], len(waiting))


def _done_blocks(task: BlockTask, checkpoint: Checkpoint, numbers: Sequence[int]) -> set[int]:
    """Find the blocks that are done and that the files hold unchanged; create the files for the others."""
    results = checkpoint.results()
    done = {number: results[number] for number in numbers if number in results}
    for result in done.values():
        task.check_data(result)
    are_kept = [target.create() for target in task.targets if target.is_begun()]
    held = {number for number, result in done.items() if all(are_kept) and task.holds(result)}
    if len(held) == len(numbers):
        return held
    # A file that is gone, or in its place already, is made again, and then holds no block.
    were_there = [target.create() for target in task.targets]
    return held if all(were_there) else set()


def _put_in_place(found: BlockReconstruction, record: dict[str, Any]) -> None:
    """Give all files their names, except those that have them from a run that was killed meanwhile."""
    task = found.task
    for target in task.targets:
        if not target.is_begun() and record_of(target.path, task.plan.fingerprint):
            continue
        if target is task.extras.trust_mask and found.doubts:
            for number in range(task.grid.n_blocks):
                write_mask(target, task.grid.block(number), torch.tensor(False))
        # The `output` of the record describes the estimate alone.
        is_result = target is task.target
        target.finish({name: value for name, value in record.items() if is_result or name != "output"})
