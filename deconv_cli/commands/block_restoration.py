"""One large input: its header and kernel, the plan of its blocks, their restoration, and the report."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deconv_cli.commands import option_groups as options
from deconv_cli.commands.batch import describe_jobs
from deconv_cli.commands.console import print_document, print_note
from deconv_cli.commands.invert_options import InvertOptions
from deconv_cli.commands.progress import PieceProgress, WorkProgress
from deconv_cli.commands.restoration import choose_kind
from deconv_cli.commands.summary import print_block_plan, print_block_summary
from deconv_cli.commands.work import Job, JobResult, LargeInput, environment_of
from deconv_cli.errors import DeconvError, UsageError
from deconv_cli.prompt_sentences import with_options
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.vocabulary import as_typed, counted, parse_size

if TYPE_CHECKING:
    from deconv_cli.blocks.block_task import BlockReconstruction
    from deconv_cli.blocks.invert_blocks import BlockRun
    from deconv_cli.report.block_page import BlockInvertRun
    from deconv_cli.schedulers.scheduler import Scheduler
    from deconv_cli.vocabulary import Size

LEAST_FOR_A_THREAD = 256 * 2**20
"""Bytes below which the blocks of several threads would be small, and their halos large."""


def open_large(work: InvertOptions, path: Path, *, is_wanted: bool) -> LargeInput | None:
    """Read header and kernel of an input; return `None` if it fits the memory or cannot be cut.

    An input that fits is cut too if the user wants blocks.

    Raises:
        UsageError: the user wants blocks, but the input cannot be cut.
    """
    import torch

    from deconv_cli.blocks.block_problem import is_small, whole_fits
    from deconv_cli.blocks.invert_blocks import lay_out_problem
    from deconv_cli.io.regions import open_regions, read_corner, read_spread
    from deconv_cli.workflows.resolve_settings import InputMetadata

    budget, files, given = work.budget, work.files, work.settings
    try:
        source = open_regions(path, axes=files.axes, series=files.series, tensor=files.tensor)
        corner = read_corner(source, are_axes_named=files.axes is not None)
    except DeconvError:
        if is_wanted:
            raise
        return None  # reading the whole says what is wrong
    if not is_wanted and is_small(source.shape, budget):
        return None
    whole = tuple(source.shape[corner.axes.index(letter)] for letter in "ZYX" if letter in corner.axes)
    try:
        loaded = work.kernel.of(corner, whole)
        corner = loaded.arrange(corner)
        loaded.refuse_for(corner, whole)
        kind, why = choose_kind(corner, lambda: torch.from_numpy(read_spread(source)), loaded, given)
        problem = lay_out_problem(
            source,
            corner,
            loaded.taps,
            ReconstructionSettings.trusted(**{"defaults": kind} | given),
            bias=loaded.bias,
            metadata=InputMetadata(recorded=loaded.recorded, kernel_sha256=loaded.source.sha256),
        )
    except UsageError:
        if is_wanted:
            raise
        return None  # it may fit as a whole
    problem = replace(problem, device=work.device_type)
    if not is_wanted and whole_fits(problem, budget):
        return None
    return LargeInput(corner, loaded, problem, why)


def covers_all(work: InvertOptions, job: Job, large: LargeInput) -> bool:
    """Return whether one block covers a picture that fits the memory: the whole needs no plan and takes less time."""
    from deconv_cli.blocks.block_extras import plan_file
    from deconv_cli.blocks.block_grid import choose_core
    from deconv_cli.blocks.block_problem import whole_fits
    from deconv_cli.io.layout import Layout

    problem, size = large.problem, _block_size(work, large)
    dtype, make_folder = work.files.output_dtype, job.make_folder
    target = plan_file(problem, job.target, problem.n_channels, dtype, force=True, make_folder=make_folder)
    layout = Layout(target.axes, target.shape, problem.layout.dimensions)
    core = choose_core(layout, target.unit, size or problem.image_size)
    return all(map(int.__ge__, core, layout.sizes)) and whole_fits(problem, work.budget)


def print_plan(work: InvertOptions, job: Job, large: LargeInput) -> None:
    """Plan the blocks, and print the plan; raises `UsageError` as `restore_large` does."""
    from deconv_cli.report.block_page import describe_block_plan

    printed = work.printed
    with _start(work) as scheduler:
        with WorkProgress(job.label, verbose=printed.verbose, is_silent=printed.quiet).shown() as progress:
            planned = _plan(work, job, large, scheduler, progress, resumes=False)
        expected_s = planned.expected_seconds(scheduler.n_workers)
    if not printed.quiet:
        print_block_plan(planned, job.target, expected_s)
    if printed.as_json:
        more = {"expected_time_s": expected_s, "planned": describe_jobs([job], work.files)[0]}
        print_document(describe_block_plan(planned) | more)


def restore_large(work: InvertOptions, job: Job, large: LargeInput, progress: WorkProgress) -> JobResult:
    """Restore an input block by block. If the only input is complete already, give the record of its result.

    Raises:
        UsageError: an output cannot be written by parts, or the input cannot be cut.
    """
    from deconv_cli.blocks.checkpoint import BlocksCompleteError
    from deconv_cli.io.atomic import check_page_path, make_parents
    from deconv_cli.report.block_page import describe_block_plan, describe_block_run
    from deconv_cli.schedulers.scheduler import JobShare

    page = work.extra.report
    describe = partial(_describe, work, job, large, time.perf_counter())
    share = None if work.large.block_range is None else JobShare.parse(work.large.block_range)
    is_heard, is_only = not work.printed.quiet, job.n_jobs == 1
    if job.make_folder:
        make_parents(job.target)
    with _start(work) as scheduler:
        try:
            planned = _plan(work, job, large, scheduler, progress, resumes=work.resumes or share is not None)
        except BlocksCompleteError as complete:
            return JobResult(complete.record, partial(print_note, with_options(str(complete))))
        if page is not None:
            check_page_path(page, job.source, force=work.files.force or work.resumes)
        if is_heard and is_only:
            options.print_workers(scheduler)
        pieces = PieceProgress(len(planned.numbers(share)), "block", is_silent=True)

        def show(n_done: int, n_blocks: int) -> None:
            pieces.reach(n_done, n_blocks)
            progress.begin(pieces.line())

        try:
            found = planned.finish(
                scheduler,
                lambda done: describe_block_run(describe(done)),
                show,
                share,
                lambda done: _write_page(page, describe(done)),
            )
        except KeyboardInterrupt:
            if is_heard and is_only:
                kept = counted(len(planned.checkpoint.results()), "finished block is", "finished blocks are")
                print_note(f"{kept} kept; run the same command with --resume to continue")
            raise
    if found.summary is None:
        n_done = len(planned.checkpoint.results())
        note = (
            f"{len(planned.numbers(share))} blocks of this job are done, {n_done} of {planned.task.grid.n_blocks} "
            "in all; the last job to end completes the result; if no job is left, run again with --resume and "
            "without --block-range"
        )
        return JobResult(describe_block_plan(planned, n_done), partial(print_note, note), is_partial=True)
    run = describe(found)
    return JobResult(describe_block_run(run), partial(print_block_summary, run))


def _start(work: InvertOptions) -> Scheduler:
    """Start the workers; by default as many threads as cores, as far as the memory allows.

    Each thread restores whole blocks, so the result does not depend on their number.
    """
    import torch

    n_threads = max(1, min(torch.get_num_threads(), work.budget // LEAST_FOR_A_THREAD))
    return work.workers.start(work.device_type, threads=n_threads if work.device_type == "cpu" else 1)


def _plan(
    work: InvertOptions,
    job: Job,
    large: LargeInput,
    scheduler: Scheduler,
    progress: WorkProgress,
    *,
    resumes: bool,
) -> BlockRun:
    from deconv_cli.blocks.block_extras import ExtraFiles, plan_extras, plan_file
    from deconv_cli.blocks.block_plan import BlockOptions
    from deconv_cli.blocks.invert_blocks import BlockRun

    extra = work.extra
    if extra.truth is not None:
        raise UsageError(
            "--truth compares a picture that is restored as a whole, but this one is restored in blocks; leave "
            "--truth out."
        )
    replaces = work.files.force or work.large.dry_run  # a dry run writes nothing
    problem, force = large.problem, None if resumes else replaces
    target = plan_file(problem, job.target, problem.n_channels, work.files.output_dtype, force=force)
    memory = scheduler.memory_of_piece(work.settings.get("max_memory"), work.budget)
    asked = ExtraFiles(extra.error_map, extra.trust_mask)
    return BlockRun.prepare(
        problem,
        target,
        BlockOptions(memory, _block_size(work, large)),
        extras=plan_extras(problem, asked, force=force),
        resume=resumes,
        force=replaces and work.forgets,
        progress=progress,
    )


def _block_size(work: InvertOptions, large: LargeInput) -> Size | None:
    if work.large.block_size is None:
        return None
    n_axes, size = large.corner.dimensions, parse_size(work.large.block_size)
    size = size * n_axes if len(size) == 1 else size
    if len(size) != n_axes:
        raise UsageError(
            f"--block-size must be a number of pixels, or one for each of {n_axes} axes of space, but is "
            f"'{work.large.block_size}'."
        )
    return size


def _describe(
    work: InvertOptions, job: Job, large: LargeInput, started: float, found: BlockReconstruction
) -> BlockInvertRun:
    from deconv_cli.report.block_page import BlockInvertRun

    notes = (*large.loaded.notes, *large.problem.source.notes, *found.notes, *large.notes, *found.task.target.notes)
    notes += work.extra.notes(found.settings)
    return BlockInvertRun(
        kernel=large.loaded.source,
        notes=notes,
        environment=environment_of(work.place, found.task.problem.dtype, started),
        rerun=work.rerun(
            job.source,
            {**_options(work, large, found), **work.extra.kept_options},
            str(found.task.target.path),
            found.task.target.dtype,
        ),
        reconstruction=found,
        spacing=large.corner.spacing,
    )


def _options(work: InvertOptions, large: LargeInput, found: BlockReconstruction) -> options.OptionValues:
    """List the options that reproduce the same samples, with the chosen values instead of `auto`."""
    settings, choices = replace(found.task.problem.settings, max_memory=None), found.plan.choices
    again = {n: v for n, v in settings.as_options().items() if n not in ("--dimensions", "--lambda-rule")}
    if found.lam is not None:
        again["--lambda"] = as_typed("lam", found.lam)
        again.pop("--noise-sigma", None)
    if choices.weight is not None:
        again["--weight"] = repr(choices.weight)
    if choices.iterations is not None:
        again["--iterations"] = choices.iterations
        again.pop("--gain", None)
    return {
        **large.loaded.options,
        **again,
        "--boundary": found.settings.boundary,
        "--max-memory": found.plan.max_memory,
        "--jobs": 1,
        "--block-size": work.large.block_size,
    }


def _write_page(path: Path | None, run: BlockInvertRun) -> None:
    if path is None:
        return
    from deconv_cli.blocks.preview_tiles import restore_preview
    from deconv_cli.io.atomic import write_page
    from deconv_cli.report.block_page import render_block_page

    plan = run.task.plan
    write_page(path, render_block_page(run, restore_preview(run.task.problem, plan.max_memory, plan.n_threads)))
