"""A run over blocks from its plan to the result in its place, or one that goes on where an earlier one ended."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from deconv_cli.blocks.block_extras import NO_EXTRAS, BlockExtras
from deconv_cli.blocks.block_ledger import BlockLedger
from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.blocks.block_reconstruction import BlockReconstruction
from deconv_cli.blocks.block_task import BlockTask
from deconv_cli.blocks.cut_blocks import BlockOptions, fit_blocks
from deconv_cli.blocks.earlier_run import find_earlier, record_of
from deconv_cli.blocks.halo_depth import BlocksDisagreeError
from deconv_cli.blocks.less_influence import whole_instead
from deconv_cli.blocks.plan_blocks import fingerprint_of, plan_blocks, with_memory
from deconv_cli.blocks.plan_extras import fingerprint_with, plan_error, with_all_units
from deconv_cli.blocks.run_blocks import BlockListener, run_blocks
from deconv_cli.blocks.seam_places import choose_seams
from deconv_cli.errors import UsageError
from deconv_cli.io.regions import RegionTarget
from deconv_cli.schedulers.scheduler import JobShare, Scheduler
from deconv_cli.workflows.progress_listener import ProgressListener


@dataclass(frozen=True, eq=False)
class BlockRun:
    """A run that is planned: nothing of the result is written yet.

    Attributes:
        task: restores and writes any block.
        ledger: what is done.
        is_resumed: whether it goes on where an earlier run ended.
        planning_s: seconds that planning took.
        replaced: fingerprint of an earlier run with other settings, which is forgotten.
        is_wider: whether it replaces a run whose halo was too narrow.
    """

    task: BlockTask
    ledger: BlockLedger
    is_resumed: bool = False
    planning_s: float = 0.0
    replaced: str | None = None
    is_wider: bool = False

    def expected_seconds(self, n_workers: int) -> float:
        """Predict how long a run takes that so many workers share: planning, all blocks, and those across seams."""
        grid = self.task.grid
        block = grid.block(0)
        n_samples = math.prod(grid.largest_data) * self.task.problem.layout.n_channels * block.n_batch
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
        """Plan a run, or take the plan of an earlier one for the same input, kernel and settings.

        Args:
            problem: what is restored.
            target: the result.
            options: how it is to be cut.
            extras: what is asked for besides.
            resume: whether to go on where an earlier run ended.
            force: whether what an earlier run left may be removed.
            progress: is notified what is looked at.

        Raises:
            BlocksCompleteError: there is nothing to go on with.
            UsageError: blocks would differ from the whole by more than seams may, or there is an earlier run.
            TooLargeError: the smallest block does not fit the memory.
        """
        started = time.perf_counter()
        ledger, files = BlockLedger.of(target.path), (*extras.targets, target)
        together = with_all_units(target, extras, problem.layout.dimensions)
        fingerprint = fingerprint_with(fingerprint_of(problem, together, options), extras)
        known = find_earlier(files, problem.source.path, ledger, fingerprint, resume=resume, force=force)
        if known is None or known.fingerprint != fingerprint:
            plan, settled = plan_blocks(problem, together, options, progress)
            plan = plan_error(replace(plan, fingerprint=fingerprint), settled, progress)
            task = BlockTask(settled, plan, target, extras)
            replaced = None if known is None else known.fingerprint
            return cls(task, ledger, planning_s=time.perf_counter() - started, replaced=replaced)
        settled = known.choices.settle(with_memory(problem, known.max_memory))
        return cls(BlockTask(settled, known, target, extras), ledger, is_resumed=True)

    def finish(
        self,
        scheduler: Scheduler,
        describe: Callable[[BlockReconstruction], dict[str, Any]],
        progress: BlockListener | None = None,
        share: JobShare | None = None,
        conclude: Callable[[BlockReconstruction], None] = lambda _: None,
    ) -> BlockReconstruction:
        """Restore what is not done yet, and put the result in its place once all is there.

        Args:
            scheduler: who works on the blocks.
            describe: gives the record that goes with the result.
            progress: is called with the number of blocks that are done and of all.
            share: which of several jobs this is; the last one to end puts the result in its place.
            conclude: is called when it is there, by a run that is gone on with too if that was ended before.

        Raises:
            UsageError: beside a seam blocks differ by more than planned for, also with a halo twice as wide.
        """
        if not self.is_resumed and share is None:
            self._forget()
        else:
            self.ledger.forget(self.replaced)
        if share is None:
            self.ledger.forget_finishing()
        task = self._as_begun()
        try:
            summary = run_blocks(task, self.ledger, scheduler, progress, replace(self, task=task).numbers(share))
        except BlocksDisagreeError as error:
            if share is not None:  # other jobs work by the same plan
                raise UsageError(f"{error}; go on with resume=True in a single job, which plans again.") from error
            self._forget()
            return self._wider(task, error).finish(scheduler, describe, progress, None, conclude)
        found = BlockReconstruction(task, summary)
        if summary is not None and not self.ledger.is_first_to_finish():
            return BlockReconstruction(task, None)
        if summary is not None:
            self._put_in_place(found, describe(found))
            conclude(found)
            self.ledger.remove()
        return found

    def _wider(self, task: BlockTask, error: BlocksDisagreeError) -> BlockRun:
        """Plan again with a halo twice as wide, which has to keep to what the first one was planned for."""
        problem, plan, options = task.problem, task.plan, BlockOptions(task.plan.max_memory)
        if self.is_wider:
            raise UsageError(f"{error}; {whole_instead(problem, options)}.") from error
        ends = zip(task.grid.is_cut, plan.halo.at_frame, problem.cuts, strict=True)
        least = tuple(min(max(2 * h, cut.n_taps), cut.n_image) if is_cut else 0 for is_cut, h, cut in ends)
        target = with_all_units(task.target, task.extras, problem.layout.dimensions)
        core = [plan.core[task.layout.axes.index(letter)] for letter in task.layout.space]
        cut = fit_blocks(problem, target, core, plan.halo.widened(least), options)
        seams = choose_seams(problem, cut.grid)
        plan = replace(plan, core=cut.grid.core, halo=cut.halo, seams=seams, block_bytes=cut.n_bytes)
        return replace(self, task=replace(task, plan=plan), is_resumed=False, is_wider=True)

    def _forget(self) -> None:
        """Remove what a run did so far."""
        self.ledger.remove()
        for target in self.task.targets:
            target.discard()

    def _put_in_place(self, found: BlockReconstruction, record: dict[str, Any]) -> None:
        """Give all files their names that do not have them yet from a run which was ended meanwhile."""
        task = found.task
        for target in task.targets:
            if not target.is_begun() and record_of(target.path, task.plan.fingerprint):
                continue
            if target is task.extras.trust_mask and found.doubts:
                task.trust_nothing()
            # What the record says of the output is true of the estimate alone.
            is_result = target is task.target
            target.finish({name: value for name, value in record.items() if is_result or name != "output"})

    def _as_begun(self) -> BlockTask:
        """Take down the plan, or take that of another job which began at the same time.

        Raises:
            UsageError: that job has other settings.
        """
        plan = self.ledger.write_plan(self.task.plan)
        if plan.fingerprint != self.task.plan.fingerprint:
            raise UsageError(
                f"another run has begun with '{self.task.target.path}' meanwhile, with another input, kernel or "
                f"settings; choose another name, or end that run and give force=True."
            )
        # Other machines round otherwise, and have other memory: what the first one chose holds for all.
        problem = plan.choices.settle(with_memory(self.task.problem, plan.max_memory))
        return BlockTask(problem, plan, self.task.target, self.task.extras)

    def numbers(self, share: JobShare | None = None) -> list[int]:
        """List the blocks of this run, or those of one of several jobs."""
        order = self.task.grid.order()
        return order if share is None else list(share.of(order))
