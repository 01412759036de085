"""One file restored block by block: planned by its header, worked off by a scheduler, and reported like any other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from deconv_cli.commands.block_summary import print_block_plan, print_block_summary
from deconv_cli.commands.console import print_answer, print_document, print_note
from deconv_cli.commands.context import ExtraOutputs, command_line
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.commands.job import Job, Outcome
from deconv_cli.commands.large_files import LargeInput
from deconv_cli.commands.large_options import LargeOptions
from deconv_cli.commands.open_large import open_large
from deconv_cli.commands.option_groups import (
    FileOptions,
    KernelOptions,
    OptionValues,
    PrintOptions,
    WorkOptions,
    print_workers,
)
from deconv_cli.commands.piece_progress import PieceProgress
from deconv_cli.commands.progress import WorkProgress
from deconv_cli.commands.prompt_sentences import with_options
from deconv_cli.commands.settings_options import SettingValues
from deconv_cli.errors import UsageError
from deconv_cli.settings import as_typed
from deconv_cli.vocabulary import counted, parse_size

if TYPE_CHECKING:
    import torch

    from deconv_cli.blocks.block_reconstruction import BlockReconstruction
    from deconv_cli.blocks.block_run import BlockRun
    from deconv_cli.report.block_page import BlockInvertRun
    from deconv_cli.report.record import Record
    from deconv_cli.schedulers.scheduler import Scheduler
    from deconv_cli.vocabulary import Size

_LAST_JOB = (
    "the job that ends last puts the result in its place; if no job is left, run again with --resume and without "
    "--block-range"
)
LEAST_FOR_A_THREAD = 256 * 2**20
"""Bytes below which the blocks of several threads would be small, and their halos large."""


class BlockRestoration:
    """Restores one input that does not fit the memory, or that is to be cut anyway.

    Args:
        files: how it is read and written.
        device: where the arithmetic runs.
        settings: those that were typed.
        large: how it is cut.
        resumes: a run that ended early is gone on with.
        workers: who does the work; by default threads of this process.
        n_sharing: processes that share the memory.
    """

    def __init__(
        self,
        files: FileOptions,
        device: torch.device,
        settings: SettingValues,
        large: LargeOptions,
        *,
        resumes: bool,
        workers: WorkOptions | None = None,
        n_sharing: int = 1,
    ) -> None:
        self._files, self._device, self._settings = files, device, settings
        self._large, self._resumes = large, resumes
        self._workers, self._n_sharing = workers or WorkOptions(), n_sharing

    def fits_surely(self, shape: Size) -> bool:
        """Tell at once of a small input, by its stored shape, that it fits the memory."""
        from deconv_cli.blocks.block_memory import is_small

        return is_small(shape, self._budget())

    def open(self, path: Path, kernels: list[Path], options: KernelOptions, *, is_wanted: bool) -> LargeInput | None:
        """Read header and kernel of an input; `None` where it fits the memory or cannot be cut, unless that is wanted.

        Raises:
            UsageError: blocks are asked for, of a file that is only read as a whole.
        """
        return open_large(
            path,
            kernels,
            options,
            files=self._files,
            settings=self._settings,
            device=self._device.type,
            budget=self._budget(),
            is_wanted=is_wanted,
        )

    def run(self, job: Job, large: LargeInput, extra: ExtraOutputs, printed: PrintOptions) -> None:
        """Plan, restore, write and tell; of what is complete already, tell that it is, unless its page is missing.

        Raises:
            UsageError: something is asked for that is not written by parts, or the picture cannot be cut.
            typer.Exit: the result is not to be trusted as it is.
        """
        from deconv_cli.blocks.earlier_run import BlocksCompleteError

        is_drawn_again = self._resumes and extra.page is not None and not extra.page.exists()
        try:
            self._run(job, large, extra, printed, goes_on=self._goes_on)
        except BlocksCompleteError as complete:
            sentence = f"'{extra.page}' is missing, so all blocks are restored again to draw it"
            if not printed.quiet:
                print_note(sentence if is_drawn_again else with_options(str(complete)))
            if is_drawn_again:  # what is shown of the whole is made as blocks are restored
                self._run(replace(job, replaces=True), large, extra, printed, goes_on=False)
            else:
                _print_answer(complete.record, complete.record.get("doubts"), printed)

    def _run(self, job: Job, large: LargeInput, extra: ExtraOutputs, printed: PrintOptions, *, goes_on: bool) -> None:
        from deconv_cli.io.output_path import check_page_path
        from deconv_cli.report.block_page import describe_block_plan, describe_block_run

        describe = partial(self._describe, job, large, extra, time.perf_counter())
        with self._workers.start(self._device.type, threads=self._n_threads()) as scheduler:
            with WorkProgress(job.label, verbose=printed.verbose, is_silent=printed.quiet).shown() as progress:
                planned = self._plan(job, large, extra, scheduler, progress, resumes=goes_on)
            if extra.page is not None:
                check_page_path(extra.page, job.source, force=self._files.force or self._resumes)
            if not printed.quiet:
                self._note_size(planned, large)
            if self._large.dry_run:
                expected_s = planned.expected_seconds(scheduler.n_workers)
                if not printed.quiet:
                    print_block_plan(planned, job.target, expected_s)
                if printed.as_json:
                    print_document(describe_block_plan(planned) | {"expected_time_s": expected_s})
                return
            found = self._work_off(planned, scheduler, describe, extra.page, printed)
        if found.summary is None:
            if printed.as_json:
                print_document(describe_block_plan(planned, len(planned.ledger.results())))
            return
        done = describe(found)
        if not printed.quiet:
            print_block_summary(done, verbose=printed.verbose)
        _print_answer(describe_block_run(done), found.doubts, printed)

    def restore(self, job: Job, large: LargeInput, extra: ExtraOutputs, progress: WorkProgress) -> Outcome:
        """Plan, restore and write one of several inputs."""
        from deconv_cli.blocks.earlier_run import BlocksCompleteError
        from deconv_cli.io.output_path import make_parents
        from deconv_cli.report.block_page import describe_block_run

        describe = partial(self._describe, job, large, extra, time.perf_counter())
        if job.make_folder:
            make_parents(job.target)
        with self._workers.start(self._device.type, threads=self._n_threads()) as scheduler:
            try:
                planned = self._plan(job, large, extra, scheduler, progress, resumes=self._resumes)
            except BlocksCompleteError:  # but its file was changed since, or the manifest would not have it done again
                planned = self._plan(job, large, extra, scheduler, progress, resumes=False)
            found = planned.finish(
                scheduler,
                lambda done: describe_block_run(describe(done)),
                lambda n_done, n_blocks: progress.begin(f"{n_done} of {counted(n_blocks, 'block')}"),
                conclude=lambda found: self._write_page(extra.page, describe(found)),
            )
        done = describe(found)
        return Outcome(describe_block_run(done), partial(print_block_summary, done), found.doubts, _show_nothing)

    def _write_page(self, path: Path | None, run: BlockInvertRun) -> None:
        if path is None:
            return
        from deconv_cli.blocks.examined_pieces import examine_pieces
        from deconv_cli.io.output_path import write_page
        from deconv_cli.report.block_page import render_block_page

        write_page(path, render_block_page(run, examine_pieces(run.task)))

    def _work_off(
        self,
        planned: BlockRun,
        scheduler: Scheduler,
        describe: Callable[[BlockReconstruction], BlockInvertRun],
        page: Path | None,
        printed: PrintOptions,
    ) -> BlockReconstruction:
        """Restore the blocks that this run is for, and say how far it is."""
        from deconv_cli.report.block_page import describe_block_run
        from deconv_cli.schedulers.scheduler import JobShare

        share = None if self._large.block_range is None else JobShare.parse(self._large.block_range)
        n_blocks, n_all = len(planned.numbers(share)), planned.task.grid.n_blocks
        if not printed.quiet:
            print_workers(scheduler)
        pieces = PieceProgress(n_blocks, "block", is_silent=printed.quiet)
        try:
            with pieces.shown():
                found = planned.finish(
                    scheduler,
                    lambda done: describe_block_run(describe(done)),
                    _Advance(pieces),
                    share,
                    lambda done: self._write_page(page, describe(done)),
                )
        except KeyboardInterrupt:
            if not printed.quiet:
                print_note("the blocks that are done are kept; the same command with --resume goes on from there")
            raise
        if found.summary is None and not printed.quiet:
            n_done = len(planned.ledger.results())
            print_note(f"{n_blocks} blocks of this job are done, {n_done} of {n_all} in all; {_LAST_JOB}")
        return found

    @property
    def _goes_on(self) -> bool:
        """Whether what an earlier run did is kept; a dry run tells of a run from the start."""
        return (self._resumes or self._large.block_range is not None) and not self._large.dry_run

    def _n_threads(self) -> int:
        """Give each core a block of its own, as far as the memory goes: the same sums whoever restores a block."""
        import torch

        if self._device.type != "cpu":
            return 1
        return max(1, min(torch.get_num_threads(), self._budget() // LEAST_FOR_A_THREAD))

    def _budget(self) -> int:
        from deconv_cli.blocks.block_memory import default_memory

        return self._settings.get("max_memory") or default_memory() // self._n_sharing

    def _plan(
        self,
        job: Job,
        large: LargeInput,
        extra: ExtraOutputs,
        scheduler: Scheduler,
        progress: WorkProgress,
        *,
        resumes: bool,
    ) -> BlockRun:
        from deconv_cli.blocks.block_run import BlockRun
        from deconv_cli.blocks.cut_blocks import BlockOptions
        from deconv_cli.blocks.invert_blocks import LargeFileOptions, plan_target
        from deconv_cli.blocks.plan_extras import ExtraFiles, plan_extras

        replaces = self._files.force or job.replaces or self._large.dry_run  # which writes nothing
        files = LargeFileOptions(
            output_dtype=self._files.output_dtype, force=replaces, resume=resumes, n_levels=self._files.pyramid
        )
        target = plan_target(large.problem, job.target, files)
        memory = scheduler.memory_of_piece(self._settings.get("max_memory"), self._budget())
        asked = ExtraFiles(extra.truth, extra.error_map, extra.trust_mask, has_page=extra.page is not None)
        return BlockRun.prepare(
            large.problem,
            target,
            BlockOptions(memory, self._block_size(large)),
            extras=plan_extras(large.problem, target, asked, force=None if resumes else replaces),
            resume=resumes,
            force=replaces,
            progress=progress,
        )

    def _block_size(self, large: LargeInput) -> Size | None:
        if self._large.block_size is None:
            return None
        n_axes, size = large.corner.dimensions, parse_size(self._large.block_size)
        size = size * n_axes if len(size) == 1 else size
        if len(size) != n_axes:
            raise UsageError(
                f"--block-size must be a number of pixels, or one for each of {n_axes} axes of space, but is "
                f"'{self._large.block_size}'."
            )
        return size

    def _note_size(self, planned: BlockRun, large: LargeInput) -> None:
        """Say so where blocks are not of the size that was asked for: all are equal, and whole tiles or chunks."""
        from deconv_cli.vocabulary import format_size

        layout, image_size = planned.task.layout, planned.task.problem.image_size
        core = tuple(planned.task.plan.core[layout.axes.index(letter)] for letter in layout.space)
        pairs = list(zip(core, self._block_size(large) or core, image_size, strict=True))
        inside = [(min(side, n), min(wanted, n)) for side, wanted, n in pairs]
        if any(side > wanted for side, wanted in inside):
            why = "since they are whole tiles or chunks of the output; an output in .npy takes smaller ones"
        elif any(side < wanted for side, wanted in inside):
            why = "the largest within --block-size that are equal in size, and whole tiles or chunks of the output"
        else:
            return
        print_note(f"blocks are of {format_size(core)} samples, {why}")

    def _describe(
        self, job: Job, large: LargeInput, extra: ExtraOutputs, started: float, found: BlockReconstruction
    ) -> BlockInvertRun:
        from deconv_cli.blocks.block_memory import arithmetic_dtype
        from deconv_cli.commands.context import environment_of
        from deconv_cli.report.block_page import BlockInvertRun

        target = found.task.target
        return BlockInvertRun(
            kernel=large.loaded.source,
            notes=(
                *large.loaded.notes,
                *large.source.notes,
                *found.notes,
                *large.notes,
                *target.notes,
            ),
            environment=environment_of(self._device, arithmetic_dtype(found.task.problem), started),
            rerun=command_line("invert", job.source, {**self._options(large, found), **extra.as_options()}),
            reconstruction=found,
            spacing=large.corner.spacing,
        )

    def _options(self, large: LargeInput, found: BlockReconstruction) -> OptionValues:
        """Give the options that make the same samples again: with what was chosen, in place of what chose it."""
        settings = replace(found.task.problem.settings, max_memory=None)
        options = {n: v for n, v in settings.as_options().items() if n not in ("--dimensions", "--lambda-rule")}
        if found.lam is not None:
            options["--lambda"] = as_typed("lam", found.lam)
            options.pop("--noise-sigma", None)
        if found.plan.choices.weight is not None:
            options["--weight"] = repr(found.plan.choices.weight)
        if found.plan.choices.iterations is not None:
            options["--iterations"] = found.plan.choices.iterations
            options.pop("--gain", None)
        if found.plan.choices.rho is not None:
            options["--rho"] = repr(found.plan.choices.rho)
        return {
            **large.loaded.options,
            **self._files.as_options(),
            **options,
            "--boundary": found.settings.boundary,
            "--max-memory": found.plan.max_memory,
            "--jobs": 1,
            "--block-size": self._large.block_size,
            "--device": self._device.type,
            "--output-dtype": found.task.target.dtype,
            "--output": found.task.target.spelled_path,
            "--force": True,
        }


def _print_answer(record: Record, doubts: Sequence[str] | None, printed: PrintOptions) -> None:
    """Print what the command is asked for, and leave by `typer.Exit` where it is not to be trusted."""
    if printed.as_json:
        print_document(record)
    else:
        print_answer(record["output"]["path"])
    if doubts:
        raise typer.Exit(ExitCode.UNTRUSTWORTHY)


def _show_nothing() -> None:
    """Draw nothing of a picture that is never in memory as a whole."""


class _Advance:
    """Tells how many blocks are done: first those of an earlier run, and none once the picture is cut anew."""

    def __init__(self, pieces: PieceProgress) -> None:
        self._pieces = pieces
        self._n_told: int | None = None

    def __call__(self, n_done: int, n_blocks: int) -> None:
        if self._n_told is None or n_done < self._n_told:
            self._pieces.begin_at(n_done, n_blocks)
        else:
            self._pieces.advance(n_done - self._n_told)
        self._n_told = n_done
