"""One file or many: the run of a command over its inputs, in this process or in others."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import typer

from deconv_cli.commands.console import about, print_answer, print_document, print_error, print_note, print_warning
from deconv_cli.commands.exit_codes import ExitCode, exit_code_for
from deconv_cli.commands.manifest import BatchOptions, Manifest, is_up_to_date, settings_of
from deconv_cli.commands.option_groups import FileOptions, PrintOptions, WorkOptions, print_workers
from deconv_cli.commands.parallel import (
    AllDone,
    Job,
    JobResult,
    LoadedFile,
    Process,
    SharedCores,
    Work,
    one_by_one,
    side_by_side,
    without_images,
)
from deconv_cli.commands.progress import PieceProgress, WorkProgress, format_duration
from deconv_cli.errors import DeconvError, UsageError
from deconv_cli.schedulers.scheduler import Scheduler
from deconv_cli.settings import with_options
from deconv_cli.vocabulary import NUMBER, counted, name_some

N_NAMED = 20
"""Failed inputs that the last note names; a manifest has them all."""


class Batch:
    """A run of one command over its inputs. A manifest that cannot be used is a `DeconvError`."""

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
        if workers.are_given and printed.verbose:
            raise UsageError(
                "--verbose prints the work of this process, but other processes do the work; leave it out, or leave "
                "out --jobs and --scheduler."
            )
        self._replaces = files.force
        self._manifest: Manifest | None = None
        if options.manifest is not None:
            settings = settings_of(invocation)
            self._manifest = Manifest(options.manifest, settings, resume=options.resume, force=files.force)
        self._records: dict[int, dict[str, Any]] = {}
        self._failures: list[tuple[Job, str, ExitCode]] = []
        self._skipped: list[Path] = []
        self._told: dict[tuple[int, str], tuple[Callable[[str], None], str, dict[str, bool]]] = {}
        self._n_done = self._n_doubted = 0
        self._doubted_before: dict[str, list[str]] = {}

    def run(self, jobs: list[Job], work: Work, left_out: Sequence[Path] = ()) -> None:
        """Do the work for every job; if one of several fails, the others go on.

        The JSON names the files `left_out`, which are no inputs.

        Raises:
            DeconvError: the only job failed, or the kernel cannot be read.
            typer.Exit: some job failed, or gave a result that is not to be trusted.
        """
        started = time.monotonic()
        is_skipped = {job.number: self._options.skip_existing and job.target.exists() for job in jobs}
        self._skipped = [job.source for job in jobs if is_skipped[job.number]]
        try:
            self._work_off([job for job in jobs if not is_skipped[job.number]], work)
        except KeyboardInterrupt:
            option = "--skip-existing" if self._manifest is None else "--resume"
            option += " instead of --force" if self._replaces and self._manifest is None else ""
            if len(jobs) > 1 and not self._printed.quiet:
                done = f"{self._n_done} of {counted(len(jobs), 'input')} were done"
                print_note(f"{done}; run the same command with {option} to continue with the others.")
            raise
        finally:
            self._print_told()
            if self._manifest is not None:
                self._manifest.close(jobs)
        self._failures.sort(key=lambda failure: failure[0].number)
        if self._printed.as_json:
            is_single = len(jobs) == 1 and not self._skipped
            document = self._records[jobs[0].number] if is_single else self._document()
            print_document(document | ({"left_out": [str(path) for path in left_out]} if left_out else {}))
        if not self._printed.quiet:
            for sentence in self._summary(jobs, time.monotonic() - started):
                print_note(sentence)
        if self._failures and not self._n_done and not self._skipped:
            raise typer.Exit(self._failures[0][2])
        if self._failures or self._n_doubted or self._doubted_before:
            raise typer.Exit(ExitCode.UNTRUSTWORTHY)

    def _work_off(self, jobs: list[Job], work: Work) -> None:
        if not jobs:
            return
        process = work.open()
        if self._manifest is not None:
            jobs = [replace(job, replaces=self._options.resume and self._manifest.wrote(job)) for job in jobs]
            n_changed = sum(self._manifest.has_other_settings(job) for job in jobs)
            if n_changed and not self._printed.quiet:
                are = "files are" if n_changed > 1 else "file is"
                print_note(f"{n_changed} {are} done again, since the settings differ from those in the manifest")
            process = partial(self._recorded, self._manifest, work, process)

        def read(job: Job) -> LoadedFile | None:
            return None if self._is_unchanged(job) else work.read(job.source)

        if len(jobs) == 1:
            with self._progress_of(jobs[0]).shown() as progress:
                (done,) = one_by_one(jobs, read, process, lambda _: progress)
            self._count(done, is_only=jobs[0].n_jobs == 1)
            return
        pieces = PieceProgress(len(jobs), is_silent=self._printed.quiet)
        with contextlib.ExitStack() as open_, pieces.shown():
            if self._workers.are_given:
                all_done = self._done_by_workers(open_, work, jobs)
            elif work.is_alone or self._printed.verbose:
                all_done = one_by_one(jobs, read, process, partial(self._progress_of, pieces=pieces))
            else:
                cores = SharedCores(len(jobs), work.memory(), work.device_type)
                progress_of = partial(self._progress_of, pieces=pieces, ends=cores.is_closed)
                all_done = side_by_side(jobs, read, process, progress_of, cores)
            for done in open_.enter_context(contextlib.closing(all_done)):  # running jobs end before the manifest does
                with pieces.paused():
                    self._count(done)
                pieces.advance()

    def _done_by_workers(self, open_: contextlib.ExitStack, work: Work, jobs: list[Job]) -> AllDone:
        """Start the workers, and give them the jobs that are not up to date.

        Workers do not look for existing outputs: a worker that repeats a job finds the output of one that died. So
        existing outputs are refused here, just before a worker gets the job.
        """
        scheduler = open_.enter_context(self._workers.start(work.device_type))
        if not self._printed.quiet:
            print_workers(scheduler)
        is_done = {job.number: self._is_unchanged(job) for job in jobs}
        yield from (JobResult(job) for job in jobs if is_done[job.number])
        jobs = [job for job in jobs if not is_done[job.number]]
        refused: list[JobResult] = []

        def begun() -> Iterator[Job]:
            for job in jobs:
                try:
                    if not (self._replaces or job.replaces):
                        work.refuse_existing(job)
                except DeconvError as error:
                    refused.append(JobResult(job, error=error))
                    continue
                if self._manifest is not None:
                    self._manifest.begin(job)
                yield job

        yield from done_by(scheduler, work.shared_by(scheduler.n_sharing), jobs, begun())
        yield from refused

    def _recorded(
        self, manifest: Manifest, work: Work, process: Process, job: Job, source: LoadedFile, progress: WorkProgress
    ) -> JobResult:
        """Do a job whose output may exist from here on, which the manifest records."""
        if not (self._replaces or job.replaces):
            work.refuse_existing(job)
        manifest.begin(job)
        return process(job, source, progress)

    def _is_unchanged(self, job: Job) -> bool:
        """Return whether the manifest has a line for a job, and its files have not changed since."""
        line = self._manifest.line_of(job) if self._options.resume and self._manifest is not None else None
        return line is not None and is_up_to_date(line, job)

    def _progress_of(
        self, job: Job, pieces: PieceProgress | None = None, ends: Callable[[], bool] | None = None
    ) -> WorkProgress:
        printed, show = self._printed, None if pieces is None else pieces.tell
        return WorkProgress(job.label, verbose=printed.verbose, is_silent=printed.quiet, show=show, ends=ends)

    def _count(self, done: JobResult, *, is_only: bool = False) -> None:
        """Record how a job ended, and print it; an error of the only job is raised."""
        job = done.job
        if done.record is None and done.error is None:  # it was up to date
            self._skipped.append(job.source)
            doubts = None if self._manifest is None else self._manifest.doubts_of(job)
            if doubts is not None:
                self._doubted_before[str(job.source)] = doubts
            for doubt in doubts or ():
                self._tell(str(job.source), doubt, print_warning, N_NAMED)
            return
        if self._manifest is not None:
            self._manifest.end(done)
        if done.record is not None:
            self._announce(done, done.record, is_only=is_only)
        elif done.error is not None:
            if is_only:
                raise done.error
            self._set_aside(job, done.error)

    def _announce(self, done: JobResult, record: dict[str, Any], *, is_only: bool) -> None:
        """Print the result of a job, and keep nothing that holds its images."""
        from deconv_cli.io.codec import codec_named

        printed, job = self._printed, done.job
        if not printed.quiet and (is_only or printed.verbose):
            done.print_summary()
        else:
            name = "" if is_only else str(job.source)
            for doubt in done.doubts:
                self._tell(name, doubt, print_warning, N_NAMED)
            for warning in () if printed.quiet else done.warnings:
                self._tell(name, warning, print_warning)
            notes, codec = list(record.get("notes", ())), codec_named(job.source)
            if record.get("light_reason") and not is_only and codec is not None and codec.is_picture:
                verb = "blurred" if record["command"] == "forward" else "restored"
                notes.insert(0, f"{verb} {record['light_reason']}")
            for note in () if printed.quiet else notes:
                self._tell(name, note, print_note)
        if printed.as_json:
            self._records[job.number] = record
        elif not done.is_partial:
            print_answer(record["output"]["path"])
        self._n_done += 1
        self._n_doubted += bool(done.doubts)

    def _tell(self, name: str, sentence: str, show: Callable[[str], None], n_named: int = 1) -> None:
        """Keep a sentence for the end, with the inputs that it concerns, even if its numbers differ between them."""
        kind = NUMBER.sub(lambda n: n[0] if sentence[: n.start()].endswith("channel ") else "", sentence)
        _, first, names = self._told.setdefault((n_named, kind), (show, sentence, {}))
        names.setdefault(name, sentence == first)

    def _print_told(self) -> None:
        """Print each sentence once, as it is for the first of its inputs, and name that or several of them."""
        for (n_named, _), (show, sentence, is_same) in self._told.items():
            names = list(is_same)
            n_more = len(names[n_named:])
            where = ", ".join(names[:n_named]) + (f" and {counted(n_more, 'more file')}" if n_more else "")
            whose = "" if all(is_same.values()) else " (the numbers are those of the first file)"
            show(f"{where}: {with_options(sentence)}{whose}" if where else with_options(sentence))

    def _set_aside(self, job: Job, error: Exception) -> None:
        """Print why a job failed. Keep only the sentence, since the error would keep its images in memory."""
        if isinstance(error, DeconvError):
            sentence, code = with_options(str(error)), exit_code_for(error)
        else:
            traceback.print_exception(error)
            sentence, code = f"unexpected {type(error).__name__}: {error}", ExitCode.FAILURE
        print_error(about(job.source, sentence))
        self._failures.append((job, sentence, code))

    def _document(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "command": self._command,
            "results": [self._records[number] for number in sorted(self._records)],
            "failed": [{"path": str(job.source), "error": sentence} for job, sentence, _ in self._failures],
            "skipped": [str(path) for path in self._skipped],
            **({"doubted_before": self._doubted_before} if self._doubted_before else {}),
        }

    def _summary(self, jobs: list[Job], seconds: float) -> Iterator[str]:
        """Count the jobs by how they ended; for a single job, note only that it was skipped."""
        if len(jobs) == 1:
            if self._skipped:
                why = "has not changed since it was written" if self._options.resume else "exists already"
                doubted = "; the run that wrote it did not trust the result" if self._doubted_before else ""
                yield f"{jobs[0].source}: skipped, since its output '{jobs[0].target}' {why}{doubted}."
            return
        before = f" ({len(self._doubted_before)} of them doubted before)" if self._doubted_before else ""
        others = f" ({self._n_doubted} of them doubted)" if self._n_doubted else ""
        counts = {"failed": len(self._failures), f"left out{before}": len(self._skipped)}
        others += "".join(f", {n} {what}" for what, n in counts.items() if n)
        were = "was" if self._n_done == 1 else "were"
        yield f"{self._n_done} of {counted(len(jobs), 'input')} {were} done{others}, in {format_duration(seconds)}."
        if self._failures:
            names = [str(job.source) for job, _, _ in self._failures]
            yield f"failed: {name_some(names, N_NAMED)}"
        if self._manifest is None and any("exists already" in sentence for _, sentence, _ in self._failures):
            yield "--skip-existing keeps the outputs that exist, and --force replaces them"


def list_jobs(jobs: Iterable[Job], *, as_json: bool) -> None:
    """Print which output each input would have, and whether it exists."""
    planned = [{"input": str(j.source), "output": str(j.target), "exists": j.target.exists()} for j in jobs]
    if as_json:
        print_document({"schema": 1, "command": "invert", "planned": planned})
        return
    for job in planned:
        print_answer(f"{job['input']} → {job['output']}{' (exists already)' if job['exists'] else ''}")


class BatchTask:
    """Does one job in any process; each process prepares the kernel once.

    Args:
        work: what to do.
        jobs: all jobs of the run.
    """

    def __init__(self, work: Work, jobs: Iterable[Job]) -> None:
        self._work = work
        self._jobs = {job.number: job for job in jobs}
        self._folder = Path.cwd()
        self._process: Process | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the prepared kernel."""
        return vars(self) | {"_process": None}

    def __call__(self, number: int) -> JobResult:
        """Read, process and write the input of one job; the result holds no image. Errors are raised."""
        with contextlib.chdir(self._folder):  # for a worker that was started elsewhere
            if self._process is None:
                self._process = self._work.open()
            progress = WorkProgress(is_silent=True)
            jobs = [self._jobs[number]]
            (done,) = one_by_one(jobs, lambda job: self._work.read(job.source), self._process, lambda _: progress)
        if done.error is not None:
            raise done.error
        return without_images(done)


def done_by(scheduler: Scheduler, work: Work, jobs: list[Job], begun: Iterator[Job]) -> Iterator[JobResult]:
    """Let the workers of a scheduler do jobs.

    Args:
        scheduler: has the workers.
        work: what to do.
        jobs: all jobs. They replace existing outputs: a worker that died may have written one.
        begun: the jobs to do; the next is taken when a worker is about to get it.

    Yields:
        How each job ended, in any order.
    """
    by_number = {job.number: job for job in jobs}
    task = BatchTask(work, (replace(job, replaces=True) for job in jobs))
    for finished in scheduler.run(task, (job.number for job in begun)):
        job = by_number[finished.number]
        yield JobResult(job, error=finished.error) if finished.result is None else finished.result
