"""From a file into a file, block by block: the twin of `deconv invert` for pictures that memory does not hold."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from deconv_cli.blocks.block_extras import NO_EXTRAS, BlockExtras
from deconv_cli.blocks.block_ledger import BlockLedger
from deconv_cli.blocks.block_memory import default_memory
from deconv_cli.blocks.block_plan import BlockPlan
from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.blocks.block_task import BlockTask
from deconv_cli.blocks.cut_blocks import BlockOptions
from deconv_cli.blocks.earlier_run import find_earlier, record_of
from deconv_cli.blocks.plan_blocks import fingerprint_of, plan_blocks, with_memory
from deconv_cli.blocks.plan_extras import (
    NO_FILES,
    ExtraFiles,
    fingerprint_with,
    plan_error,
    plan_extras,
    with_all_units,
)
from deconv_cli.blocks.run_blocks import BlockListener, BlockSummary, run_blocks
from deconv_cli.blocks.sampled_error import SampledError
from deconv_cli.errors import UsageError
from deconv_cli.io.image import ImageFile
from deconv_cli.io.layout import Layout
from deconv_cli.io.regions.opening import open_regions, plan_regions
from deconv_cli.io.regions.region_source import RegionSource
from deconv_cli.io.regions.region_target import RegionTarget
from deconv_cli.io.regions.sample_image import read_corner
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.schedulers.job_array import JobShare
from deconv_cli.schedulers.scheduler import Scheduler
from deconv_cli.schedulers.serial import SerialScheduler
from deconv_cli.settings import ReconstructionSettings, ResolvedSettings
from deconv_cli.vocabulary import InputKind, OutputDType, format_padding
from deconv_cli.workflows.arithmetic import check_kernel
from deconv_cli.workflows.pipeline import Pipeline
from deconv_cli.workflows.progress_listener import ProgressListener
from deconv_cli.workflows.resolution import RecordedConvolution


@dataclass(frozen=True)
class LargeFileOptions:
    """How a large file is read and written.

    Attributes:
        axes: letters of the stored axes, in place of what the file says.
        series: number of the image, where the file holds several.
        tensor: name of the tensor, likewise.
        n_levels: how many resolutions of the result are stored, each half the one before.
        output_dtype: sample type of the result; `None` for float32.
        force: whether an existing result may be replaced.
        resume: whether to go on where an earlier run ended.
        extra: what is asked for besides the result; all of it needs the prediction of the error.
    """

    axes: str | None = None
    output_dtype: OutputDType | None = None
    force: bool = False
    resume: bool = False
    series: int | None = None
    tensor: str | None = None
    n_levels: int = 1
    extra: ExtraFiles = NO_FILES


@dataclass(frozen=True, eq=False)
class BlockReconstruction:
    """What came of a picture that was restored block by block.

    Attributes:
        task: what was done to each block, by which plan.
        summary: what came of all blocks; `None` where some, or putting them in place, are left to other processes.
    """

    task: BlockTask
    summary: BlockSummary | None

    @property
    def plan(self) -> BlockPlan:
        """What was decided before the first block."""
        return self.task.plan

    @property
    def settings(self) -> ResolvedSettings:
        """What was solved, with nothing left open."""
        return self.task.problem.resolution.settings

    @property
    def lam(self) -> float | tuple[float, ...] | None:
        """λ, or that of each channel; `None` where there is no quadratic penalty."""
        if not self.settings.has_lambda:
            return None
        return self.task.problem.resolution.lams or self.settings.lam

    @property
    def seam(self) -> float | None:
        """The largest difference that was measured beside a seam, as a part of the range of the samples."""
        measured = None if self.summary is None else self.summary.seam
        return None if measured is None or self.plan.halo.range == 0 else measured / self.plan.halo.range

    @property
    def expected_error(self) -> SampledError | None:
        """The error to be expected of the whole; `None` where it was not asked for, or blocks are left."""
        summary, sample = self.summary, self.plan.error
        if sample is None or summary is None or summary.predicted_error is None:
            return None
        mean_square, real = summary.predicted_error**2, summary.real_error
        return sample.of_whole(self.task.problem.image_size, mean_square, real, is_trusted=not self.doubts)

    @property
    def record(self) -> dict[str, Any]:
        """What was done, as JSON can hold it; it goes with the result."""
        settings, resolution, lam = self.settings, self.task.problem.resolution, self.lam
        return {
            "command": "invert",
            "boundary": settings.boundary,
            "padding": format_padding(settings.padding),
            "light": str(settings.light),
            "objective": settings.objective,
            "lambda": list(lam) if isinstance(lam, tuple) else lam,
            "lambda_reason": None if lam is None else resolution.reasons.lam,
            "penalty": settings.penalty if settings.has_lambda else None,
            "weight": self.plan.choices.weight,
            "iterations": self.plan.choices.iterations,
            "rho": self.plan.choices.rho,
            "is_trusted": not self.doubts,
            "doubts": list(self.doubts),
            "plan": self.task.as_record(),
            "blocks": self.summary and self.summary.as_record(),
            "seam": {"predicted": self.plan.halo.predicted, "measured": self.seam},
        }

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the result is not to be trusted as it is, a sentence each."""
        found = list(self.plan.doubts)
        if self.summary is not None and self.summary.n_unsolved:
            found.append(
                f"in {self.summary.n_unsolved} of {self.summary.n_blocks} blocks the solver did not reach what was "
                f"asked for; the largest certificate is {self.summary.certificate:.2g}"
            )
        if self.seam is not None and self.seam > self.plan.halo.predicted:
            found.append(
                f"beside a seam the result differs by {self.seam:.2g} of the range from one without that seam, more "
                f"than the {self.plan.halo.predicted:.2g} that was predicted"
            )
        return tuple(found)


def invert_blocks(
    source: str | Path,
    kernel: Tensor,
    target: str | Path,
    *,
    settings: ReconstructionSettings | None = None,
    files: LargeFileOptions | None = None,
    blocks: BlockOptions | None = None,
    scheduler: Scheduler | None = None,
    progress: BlockListener | None = None,
    **options: Any,  # noqa: ANN401
) -> BlockReconstruction:
    """Restore a picture or a stack from a file into a file, whatever its size.

    Args:
        source: the file; TIFF, .npy and what else is read by parts.
        kernel: the taps that blurred it, as for `deconv_cli.invert`.
        target: the result; its suffix decides the format.
        settings: how to undo the blur; or give its fields one by one.
        files: how the files are read and written.
        blocks: how the picture is cut; by default within half of the memory that is free.
        scheduler: who works on the blocks; by default this process, one after another.
        progress: is called with the number of blocks that are done and of all.
        options: fields of `ReconstructionSettings`; those left open are as for a picture where the file is one.

    Raises:
        UsageError: settings that contradict one another, or an estimate that depends on data too far away for blocks.
        TooLargeError: the smallest block does not fit the memory.
        InputRefusedError: the file is damaged, or holds NaN or Inf.
        FileAccessError: a file cannot be read or written.
    """
    if settings is not None and options:
        raise UsageError(f"settings were given as a record and as {next(iter(options))} too; use one or the other.")
    files = files or LargeFileOptions()
    opened = open_regions(Path(source), axes=files.axes, series=files.series, tensor=files.tensor)
    if settings is None:
        kind = InputKind.PICTURE if opened.is_picture else InputKind.TENSOR
        settings = ReconstructionSettings.of(**{"defaults": kind} | options)
    corner = read_corner(opened, are_axes_named=files.axes is not None)
    corner = corner.spanned_by(Kernel.of_any(kernel, dimensions=settings.dimensions).n_axes)
    if files.extra != NO_FILES:
        settings = replace(settings, predict=True)
    problem = lay_out_problem(opened, corner, kernel, settings)
    planned = plan_target(problem, Path(target), files)
    extras = plan_extras(problem, planned, files.extra, force=None if files.resume else files.force)
    options_ = blocks or BlockOptions(default_memory())
    run = BlockRun.prepare(problem, planned, options_, extras=extras, resume=files.resume, force=files.force)
    return run.finish(scheduler or SerialScheduler(), lambda found: found.record, progress)


def lay_out_problem(
    source: RegionSource,
    corner: ImageFile,
    kernel: Tensor | KernelField,
    settings: ReconstructionSettings,
    *,
    bias: Tensor | None = None,
    recorded: RecordedConvolution | None = None,
) -> BlockProblem:
    """Resolve the settings for a large picture; nothing more of it is read.

    Args:
        source: the picture.
        corner: a corner of it, whose axes of space are those of the kernel.
        kernel: the taps that blurred it.
        settings: how to undo the blur.
        bias: subtracted from each output channel first, shape `(C_out,)`.
        recorded: what the file says about the convolution that made it.

    Raises:
        UsageError: settings that contradict one another, or a kernel that blocks cannot take.
    """
    if isinstance(kernel, KernelField):
        raise UsageError(
            "a kernel that varies over the frame is not undone in blocks; restore a picture that fits the memory as a "
            "whole, or a part of one with the kernel of its place, such as field.taps[0, 0]."
        )
    check_kernel(kernel)
    settings = replace(settings, dimensions=corner.dimensions)
    resolution = Pipeline(kernel, settings, bias=bias).resolve(recorded, corner.tone_curve, source.dtype)
    _check_settings(resolution.settings)
    # Of pieces alone: what those tell is spread over all blocks.
    resolution = replace(resolution, settings=replace(resolution.settings, predict=False))
    layout = Layout(corner.axes, source.shape, corner.dimensions)
    return BlockProblem(source, layout, kernel, settings, resolution, bias)


def _check_settings(settings: ReconstructionSettings) -> None:
    """Refuse by `UsageError` what is no matter of blocks."""
    if not settings.layer.is_plain:
        raise UsageError(
            "blocks are made of plain convolutions, but this layer has a stride, a dilation or groups, or is "
            "transposed; restore a tensor that fits the memory."
        )
    if settings.rcond is not None:
        raise UsageError("rcond truncates on the torus of the whole image, which blocks do not have; use lam instead.")


def plan_target(problem: BlockProblem, path: Path, files: LargeFileOptions) -> RegionTarget:
    """Decide where the result goes and as what; nothing is written yet."""
    return plan_regions(
        path,
        problem.source,
        problem.layout,
        n_channels=problem.n_channels,
        size=problem.image_size,
        output_dtype=files.output_dtype,
        force=None if files.resume else files.force,
        n_levels=files.n_levels,
    )


@dataclass(frozen=True, eq=False)
class BlockRun:
    """A run that is planned: nothing of the result is written yet.

    Attributes:
        task: restores and writes any block.
        ledger: what is done.
        is_resumed: whether it goes on where an earlier run ended.
        planning_s: seconds that planning took.
        replaced: fingerprint of an earlier run with other settings, which is forgotten.
    """

    task: BlockTask
    ledger: BlockLedger
    is_resumed: bool = False
    planning_s: float = 0.0
    replaced: str | None = None

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
            progress: is told what is looked at.

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
        """
        if not self.is_resumed and share is None:
            self.ledger.remove()
            for target in self.task.targets:
                target.discard()
        else:
            self.ledger.forget(self.replaced)
        if share is None:
            self.ledger.forget_finishing()
        task = self._as_begun()
        summary = run_blocks(task, self.ledger, scheduler, progress, replace(self, task=task).numbers(share))
        found = BlockReconstruction(task, summary)
        if summary is not None and not self.ledger.is_first_to_finish():
            return BlockReconstruction(task, None)
        if summary is not None:
            self._put_in_place(found, describe(found))
            conclude(found)
            self.ledger.remove()
        return found

    def _put_in_place(self, found: BlockReconstruction, record: dict[str, Any]) -> None:
        """Give all files their names that do not have them yet from a run which was ended meanwhile."""
        task = found.task
        for target in task.targets:
            if not target.is_begun() and record_of(target, task.plan.fingerprint):
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
