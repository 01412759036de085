"""One file or many: how a run over them goes, and how it ends."""

from __future__ import annotations

import contextlib
import re
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import typer

from deconv_cli.commands.batch_options import BatchOptions
from deconv_cli.commands.batch_task import done_by
from deconv_cli.commands.cli_messages import with_options
from deconv_cli.commands.console import print_answer, print_document, print_error, print_note, print_warning
from deconv_cli.commands.exit_codes import ExitCode, exit_code_for
from deconv_cli.commands.job import Done, Finish, Job, Outcome, Process, Source, Work
from deconv_cli.commands.manifest import Manifest, is_up_to_date
from deconv_cli.commands.option_groups import FileOptions, PrintOptions
from deconv_cli.commands.parallel import AllDone, SharedCores, one_by_one, side_by_side
from deconv_cli.commands.piece_progress import PieceProgress
from deconv_cli.commands.progress import WorkProgress, format_duration
from deconv_cli.commands.work_options import WorkOptions, print_workers
from deconv_cli.errors import DeconvError, UsageError
from deconv_cli.vocabulary import counted

N_NAMED = 20
"""So many inputs that failed are named at the end; a manifest has them all."""

_NUMBER = re.compile(r"\d[\d.e+-]*")


@dataclass(frozen=True)
class _Failure:
    """What is kept of a job that failed: which one, why, and the exit code of a run of which it is all."""

    job: Job
    sentence: str
    code: ExitCode | None


class Batch:
    """A run of one command over its inputs.

    Args:
        command: its name.
        files: how to read inputs and write outputs.
        printed: what is printed.
        options: what to do about files that were done before.
        workers: who does the work of many.
        invocation: the command as it was typed, whose settings a manifest takes down.

    Raises:
        UsageError: there is a manifest already.
        DeconvError: the manifest cannot be read or written.
    """

    def __init__(
        self,
        command: str,
        files: FileOptions,
        printed: PrintOptions,
        options: BatchOptions,
        workers: WorkOptions,
        invocation: typer.Context,
    ) -> None:
        self._command, self._printed, self._options, self._workers = command, printed, options, workers
        if workers.are_given and (printed.show or printed.verbose):
            raise UsageError(
                f"{'--show' if printed.show else '--verbose'} tells what this process does, but others do the work; "
                "leave it out, or leave out --jobs, --cluster and --scheduler."
            )
        self._replaces = files.force
        self._manifest = options.open_manifest(invocation, force=files.force)
        self._records: dict[int, dict[str, Any]] = {}
        self._failures: list[_Failure] = []
        self._skipped: list[Path] = []
        self._notes: set[str] = set()
        self._n_done = self._n_doubted = 0
        self._doubted_before: dict[str, list[str]] = {}

    def run(self, jobs: list[Job], work: Work) -> None:
        """Do the work for every job; a failure among several is set aside, and the others go on.

        Raises:
            DeconvError: the only job failed, or what all share cannot be prepared.
            typer.Exit: some job failed, or gave a result that is not to be trusted.
        """
        started = time.monotonic()
        from deconv_cli.io.files import is_there

        existing = [job for job in jobs if self._options.skip_existing and is_there(job.target)]
        self._skipped = [job.source for job in existing]
        left_out = {job.number for job in existing}
        try:
            self._work_off([job for job in jobs if job.number not in left_out], work)
        finally:
            if self._manifest is not None:
                self._manifest.close(jobs)
        self._end(jobs, time.monotonic() - started)

    def _work_off(self, jobs: list[Job], work: Work) -> None:
        if not jobs:
            return
        read, process = partial(self._read, work), work.open()
        if self._manifest is not None:
            jobs = [replace(job, replaces=self._options.resume and self._manifest.wrote(job)) for job in jobs]
            process = partial(_begun, self._manifest, process)
        if len(jobs) == 1:
            with self._progress_of(jobs[0]).shown() as progress:
                (done,) = one_by_one(jobs, read, process, lambda _: progress)
            self._count(done, is_only=jobs[0].n_jobs == 1)
            return
        pieces = PieceProgress(len(jobs), is_silent=self._printed.quiet)
        with contextlib.ExitStack() as open_, pieces.shown():
            if self._workers.are_given:
                all_done = self._done_by_workers(open_, work, jobs)
            elif work.is_alone or self._printed.show or self._printed.verbose:
                all_done = one_by_one(jobs, read, process, partial(self._progress_of, pieces=pieces))
            else:
                cores = SharedCores(len(jobs), work.memory(), work.device_type)
                progress_of = partial(self._progress_of, pieces=pieces, ends=cores.is_closed)
                all_done = side_by_side(jobs, read, process, progress_of, cores)
            for done in open_.enter_context(contextlib.closing(all_done)):  # what goes on ends before the manifest does
                with pieces.paused():
                    self._count(done)
                pieces.advance()

    def _done_by_workers(self, open_: contextlib.ExitStack, work: Work, jobs: list[Job]) -> AllDone:
        """Start the workers, and let them do what there is to do."""
        scheduler = open_.enter_context(self._workers.start(work.device_type))
        if not self._printed.quiet:
            print_workers(scheduler)
        todo = []
        for job in jobs:
            if self._is_unchanged(job):
                yield Done(job)
            else:
                todo.append(job)
        refused: list[Done] = []
        yield from done_by(scheduler, work.shared_by(scheduler.n_sharing), todo, self._begun(todo, work, refused))
        yield from refused

    def _begun(self, jobs: list[Job], work: Work, refused: list[Done]) -> Iterator[Job]:
        """Take down each job as it is about to be given to a worker, and set those aside that a file is in the way of.

        Workers do not look for it: whoever does a job again finds what the one before wrote, who died.
        """
        for job in jobs:
            try:
                if not (self._replaces or job.replaces):
                    work.refuse_existing(job)
            except DeconvError as error:
                refused.append(Done(job, error=error))
                continue
            if self._manifest is not None:
                self._manifest.begin(job)
            yield job

    def _is_unchanged(self, job: Job) -> bool:
        """Whether what the manifest says of a job is still true."""
        line = self._manifest.line_of(job) if self._options.resume and self._manifest is not None else None
        return line is not None and is_up_to_date(line, job)

    def _progress_of(
        self, job: Job, pieces: PieceProgress | None = None, ends: Callable[[], bool] | None = None
    ) -> WorkProgress:
        printed, show = self._printed, None if pieces is None else pieces.tell
        return WorkProgress(job.label, verbose=printed.verbose, is_silent=printed.quiet, show=show, ends=ends)

    def _read(self, work: Work, job: Job) -> Source | None:
        """Read an input, unless what the manifest says of it is still true."""
        return None if self._is_unchanged(job) else work.read(job.source)

    def _count(self, done: Done, *, is_only: bool = False) -> None:
        """Take down how a job ended, and say so; an error of the only one is that of the run."""
        if done.outcome is None and done.error is None:
            self._leave_out(done.job)
            return
        if self._manifest is not None:
            self._manifest.end(done)
        if done.outcome is not None:
            self._announce(done.job, done.outcome, is_only=is_only)
        elif done.error is not None:
            if is_only:
                raise done.error
            self._set_aside(done.job, done.error)

    def _leave_out(self, job: Job) -> None:
        """Count a job whose line is still true, and say again why its result was doubted."""
        self._skipped.append(job.source)
        doubts = None if self._manifest is None else self._manifest.doubts_of(job)
        if doubts is not None:
            self._doubted_before[str(job.source)] = doubts
        for doubt in doubts or ():
            print_warning(f"{job.source}: {doubt}")

    def _announce(self, job: Job, outcome: Outcome, *, is_only: bool) -> None:
        """Print what became of a job, and keep no more of it than is needed, so that the images can be dropped."""
        from deconv_cli.io.codec import codec_named

        printed = self._printed
        if not printed.quiet and (is_only or printed.verbose):
            outcome.print_summary()
        else:
            of_which = "" if is_only else f"{job.source}: "
            for doubt in outcome.doubts:
                print_warning(of_which + with_options(doubt))
            for warning in outcome.warnings:
                self._print_once(job, warning, print_warning)
            codec, light = codec_named(job.source), outcome.record.get("light_reason")
            if light and not is_only and codec is not None and codec.is_picture:
                self._print_once(
                    job, f"{'blurred' if outcome.record['command'] == 'forward' else 'restored'} {light}", print_note
                )
            for note in outcome.record["notes"]:
                self._print_once(job, note, print_note)
        if printed.show:
            outcome.show()
        if printed.as_json:
            self._records[job.number] = outcome.record
        else:
            print_answer(outcome.record["output"]["path"])
        self._n_done += 1
        self._n_doubted += not outcome.is_trusted

    def _print_once(self, job: Job, sentence: str, show: Callable[[str], None]) -> None:
        """Print sentences that differ in their numbers alone once, with the first input that they are true of."""
        kind = _NUMBER.sub("", sentence)
        if kind not in self._notes and not self._printed.quiet:
            show(f"{job.source}: {with_options(sentence)}")
        self._notes.add(kind)

    def _set_aside(self, job: Job, error: Exception) -> None:
        """Say what failed; of the error no more is kept than that, since it holds on to the images at hand."""
        if not isinstance(error, DeconvError):
            traceback.print_exception(error)
        failure = _Failure(job, _sentence(error), exit_code_for(error) if isinstance(error, DeconvError) else None)
        print_error(f"{job.source}: {failure.sentence}")
        self._failures.append(failure)

    def _end(self, jobs: list[Job], seconds: float) -> None:
        """Print the document, sum up, and leave with the exit code."""
        self._failures.sort(key=lambda failure: failure.job.number)
        if self._printed.as_json:
            is_single = len(jobs) == 1 and not self._skipped
            print_document(self._records[jobs[0].number] if is_single else self._document())
        if not self._printed.quiet:
            for sentence in self._summary(len(jobs), seconds) if len(jobs) > 1 else self._left_out(jobs):
                print_note(sentence)
        if self._failures and not self._n_done and not self._skipped:
            raise typer.Exit(self._failures[0].code or ExitCode.FAILURE)
        if self._failures or self._n_doubted or self._doubted_before:
            raise typer.Exit(ExitCode.UNTRUSTWORTHY)

    def _document(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "command": self._command,
            "results": [self._records[number] for number in sorted(self._records)],
            "failed": [{"path": str(failure.job.source), "error": failure.sentence} for failure in self._failures],
            "skipped": [str(path) for path in self._skipped],
            **({"doubted_before": self._doubted_before} if self._doubted_before else {}),
        }

    def _left_out(self, jobs: list[Job]) -> Iterator[str]:
        """Say so where the only input was left out."""
        if self._skipped:
            why = "has not changed since it was written" if self._options.resume else "exists already"
            doubted = ", doubted as it was then" if self._doubted_before else ""
            yield f"{jobs[0].source}: left out, since its output '{jobs[0].target}' {why}{doubted}."

    def _summary(self, n_jobs: int, seconds: float) -> Iterator[str]:
        before = f" ({len(self._doubted_before)} of them doubted before)" if self._doubted_before else ""
        counts = {"doubted": self._n_doubted, "failed": len(self._failures), f"left out{before}": len(self._skipped)}
        others = "".join(f", {n} {what}" for what, n in counts.items() if n)
        were = "was" if self._n_done == 1 else "were"
        yield f"{self._n_done} of {counted(n_jobs, 'input')} {were} done{others}, in {format_duration(seconds)}."
        if self._failures:
            names = [str(failure.job.source) for failure in self._failures]
            more = f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else ""
            yield f"failed: {', '.join(names[:N_NAMED])}{more}"


def _begun(manifest: Manifest, process: Process, job: Job, source: Source, progress: WorkProgress) -> Finish:
    finish = process(job, source, progress)
    manifest.begin(job)  # from here on its output may be there
    return finish


def _sentence(error: Exception) -> str:
    """Give an error in one sentence; one that nobody foresaw, with its name."""
    return with_options(str(error)) if isinstance(error, DeconvError) else f"unexpected {type(error).__name__}: {error}"
