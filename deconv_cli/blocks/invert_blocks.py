"""Restore a file into another file, block by block: `deconv invert` from Python for pictures larger than memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deconv_cli.blocks.block_extras import (
    NO_EXTRAS,
    NO_FILES,
    BlockExtras,
    ExtraFiles,
    plan_extras,
    plan_file,
    write_mask,
)
from deconv_cli.blocks.block_plan import BlockOptions, fingerprint_of, plan_blocks
from deconv_cli.blocks.block_problem import BlockProblem, default_memory
from deconv_cli.blocks.block_task import BlockReconstruction, BlockSummary, BlockTask
from deconv_cli.blocks.checkpoint import Checkpoint, find_earlier, record_of
from deconv_cli.errors import UsageError, as_path
from deconv_cli.io.image import ImageFile
from deconv_cli.io.layout import Layout
from deconv_cli.io.limits import allowing
from deconv_cli.io.region_arrays import RegionSource, RegionTarget
from deconv_cli.io.regions import open_regions, read_corner
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.parts import BOUNDARIES
from deconv_cli.schedulers.local_workers import SerialScheduler
from deconv_cli.schedulers.scheduler import JobShare, Scheduler
from deconv_cli.settings import ReconstructionSettings, ResolvedSettings
from deconv_cli.solvers.solution import default_tolerance
from deconv_cli.vocabulary import InputKind, OutputDType
from deconv_cli.workflows.arithmetic import check_kernel
from deconv_cli.workflows.pipeline import Pipeline
from deconv_cli.workflows.progress_listener import ProgressListener, as_listener
from deconv_cli.workflows.resolve_settings import NO_METADATA, InputMetadata

BlockListener = Callable[[int, int], None]
"""Is called with the number of blocks that are done and the number of all."""
CLOSER = 0.1
"""Factor on the tolerance of linear estimates under an unknown boundary; see `_solved_closely`."""
CLOSE_TOLERANCES = {"photo": 1e-5, "nonnegative": 1e-4}
"""Of other estimates, by the objective. In the steps of prior photo at 1e-3 blocks differ by 3e-4 to 9e-4 of the range
far from a cut, at 1e-5 hardly more than with exact steps."""


@dataclass(frozen=True)
class LargeFileOptions:
    """How a large file is read and written.

    Attributes:
        axes: letters of the stored axes, in place of what the file says.
        output_dtype: sample type of the result; `None` for float32.
        force: whether an existing result may be replaced.
        resume: whether to resume an earlier run.
        series: number of the image, if the file holds several, or `tensor` its name.
        extra: what is made beside the result; all of it needs the prediction of the error.
    """

    axes: str | None = None
    output_dtype: OutputDType | None = None
    force: bool = False
    resume: bool = False
    series: int | None = None
    tensor: str | None = None
    extra: ExtraFiles = NO_FILES


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
        source: the file; TIFF, .npy or another format that is read by parts.
        kernel: the taps that blurred it, as for `deconv_cli.invert`.
        target: the result; its suffix decides the format.
        settings: how to undo the blur; or give its fields one by one.
        files: how the files are read and written.
        blocks: how the picture is cut; by default within half of the free memory.
        scheduler: who works on the blocks; by default this process, block by block.
        progress: is called with the number of blocks that are done and of all.
        options: fields of `ReconstructionSettings`; defaults are those of a picture if the file is one.

    Raises:
        UsageError: settings contradict one another, or the estimate depends on data too far away for blocks.
        TooLargeError: the smallest block does not fit the memory.
        InputRefusedError: the file is damaged, or holds NaN or Inf.
        FileAccessError: a file cannot be read or written.
    """
    if settings is not None and options:
        raise UsageError(f"settings were given both as a record and as {next(iter(options))}; use one or the other.")
    check_kernel(kernel)
    files, blocks_ = files or LargeFileOptions(), blocks or BlockOptions(default_memory())
    with allowing(None if blocks is None else blocks.max_memory):
        opened = open_regions(as_path(source), axes=files.axes, series=files.series, tensor=files.tensor)
    if settings is None:
        kind = InputKind.PICTURE if opened.is_picture else InputKind.TENSOR
        settings = ReconstructionSettings.of(**{"defaults": kind} | options)
    corner = read_corner(opened, are_axes_named=files.axes is not None)
    corner = corner.spanned_by(Kernel.of_any(kernel, dimensions=settings.dimensions).n_axes)
    if files.extra != NO_FILES:
        settings = replace(settings, predict=True)
    problem = lay_out_problem(opened, corner, kernel, settings)
    force = None if files.resume else files.force
    planned = plan_file(problem, as_path(target), problem.n_channels, files.output_dtype, force=force)
    extras = plan_extras(problem, files.extra, force=force)
    run = BlockRun.prepare(problem, planned, blocks_, extras=extras, resume=files.resume, force=files.force)
    return run.finish(scheduler or SerialScheduler(), lambda found: found.record, progress)


def lay_out_problem(
    source: RegionSource,
    corner: ImageFile,
    kernel: Tensor | KernelField,
    settings: ReconstructionSettings,
    *,
    bias: Tensor | None = None,
    metadata: InputMetadata = NO_METADATA,
) -> BlockProblem:
    """Resolve the settings for a large picture without reading more than a corner of it.

    The axes of space of the corner are those of the kernel; `metadata` describes the picture besides its samples.

    Raises:
        UsageError: settings contradict one another, or blocks cannot take them or the kernel.
    """
    if isinstance(kernel, KernelField):
        raise UsageError(
            "blocks cannot undo a kernel that varies over the frame; restore a picture that fits the memory as a "
            "whole, or a part of it with the kernel of its place, such as field.taps[0, 0]."
        )
    settings = replace(settings, dimensions=corner.dimensions)
    resolution = Pipeline(kernel, settings, bias=bias).resolve(
        replace(
            metadata,
            record=corner.record,
            tone_curve=corner.tone_curve,
            sample_type=source.dtype,
            spacing=corner.spacing,
        )
    )
    _check_settings(resolution.settings)
    layout = Layout(corner.axes, source.shape, corner.dimensions)
    problem = BlockProblem(source, layout, kernel, settings, resolution, bias)
    return _solved_closely(problem.with_settings(predict=False))  # the error is predicted on tiles alone


def _solved_closely(problem: BlockProblem) -> BlockProblem:
    """Lower the tolerance of linear estimates under an unknown boundary, of prior photo and of nonnegative estimates.

    Few data determine the pixels on an edge of the frame. At the usual tolerance two blocks differ there by more than
    the effect of a cut elsewhere, and larger blocks differ by more. The steps of prior photo are solved closely under
    every boundary: at their usual tolerance two blocks differ by as much as is allowed at seams.
    """
    settings = problem.resolved
    if (tolerance := CLOSE_TOLERANCES.get(settings.objective)) is not None:
        return problem.with_settings(tolerance=settings.tolerance or tolerance)
    if settings.is_linear and BOUNDARIES[settings.boundary].is_unknown:
        return problem.with_settings(tolerance=(settings.tolerance or default_tolerance(problem.dtype)) * CLOSER)
    return problem


_AS_A_WHOLE = "restore the image as a whole, without block_size and with as much max_memory as it needs"


def _check_settings(settings: ResolvedSettings) -> None:
    """Refuse by `UsageError` what blocks cannot take."""
    if not settings.layer.is_plain:
        raise UsageError(
            "blocks can undo plain convolutions only, but this layer has a stride, a dilation or groups, or is "
            "transposed; restore a tensor that fits the memory."
        )
    if BOUNDARIES[settings.boundary].is_periodic:
        raise UsageError(
            f"boundary {settings.boundary} joins opposite edges, which never lie in one block; use another boundary, "
            f"or {_AS_A_WHOLE}."
        )
    if settings.objective == "tv":
        raise UsageError(
            "prior tv needs the whole image, because its iteration ends elsewhere in each block; use prior quadratic, "
            f"or {_AS_A_WHOLE}."
        )


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
        """Predict the seconds of a run with this many workers: for planning, all blocks, and those across seams."""
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

        `describe` makes the record that goes with the result; `progress` gets the number of blocks that are done, and
        of all. If several jobs share the blocks, the last one to end puts the result in its place. `conclude` is called
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
        """Write the plan, or return the plan of another job that began at the same time.

        Raises:
            UsageError: that job has other settings.
        """
        plan = self.checkpoint.write_plan(self.task.plan)
        if plan.fingerprint != self.task.plan.fingerprint:
            raise UsageError(
                f"another run, with another input, kernel or settings, is writing '{self.task.target.path}'; choose "
                "another name, or end that run and give force=True."
            )
        # Machines differ in rounding and memory, so the choices of the first one hold for all.
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
