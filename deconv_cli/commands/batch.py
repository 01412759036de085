"""One file or many: the run of a command over its inputs by the workers of a scheduler, and the manifest of the run."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import typer

from deconv_cli.allocator import load_torch
from deconv_cli.commands.console import about, print_answer, print_document, print_error, print_note, print_warning
from deconv_cli.commands.exit_codes import ExitCode, exit_code_for
from deconv_cli.commands.option_groups import BatchOptions, FileOptions, PrintOptions, WorkOptions, print_workers
from deconv_cli.commands.progress import PieceProgress, WorkProgress, format_duration
from deconv_cli.commands.work import Job, JobResult, LargeInput, Process, Work, is_large, print_nothing
from deconv_cli.errors import DeconvError, UsageError, as_too_large
from deconv_cli.prompt_sentences import with_options
from deconv_cli.schedulers.scheduler import Finished, Scheduler, attempt
from deconv_cli.vocabulary import NUMBER, SCHEMA, counted, name_some

N_NAMED = 20
"""Failed inputs that the last note names; a manifest has them all."""
N_ON_DEVICE = 2
"""Files that are on a GPU at once: one computes while the other is copied."""
_READING = threading.Lock()
"""Held by the one thread that reads, so that at most one file takes more than its share of the memory."""


class Manifest:
    """A log of a batch: one line of JSON for each file, as soon as the file is done.

    It `appends` lines to an existing file, even after a torn line, or replaces the file with `force`. An empty file
    counts as missing.

    Raises:
        UsageError: the file exists already, or is a pipe or a device.
        FileAccessError: it cannot be written.
    """

    def __init__(self, path: Path, *, appends: bool, force: bool) -> None:
        from deconv_cli.io.files import explaining, refuse_special
        from deconv_cli.io.records import decode_record

        self._explaining = partial(explaining, f"the manifest '{path}' cannot be written")
        refuse_special(path)
        size = path.stat().st_size if path.exists() else 0
        if size and not (appends or force):
            raise UsageError(
                f"the manifest '{path}' exists already; --skip-existing adds lines to it, --force replaces it; or "
                "choose another name."
            )
        with self._explaining():
            text = path.read_text("ascii", errors="replace") if appends and size else ""
            self._stream = path.open("a" if appends else "w", encoding="ascii")
            self._stream.write("\n" if text and not text.endswith("\n") else "")
        lines = [decode_record(line) or {} for line in text.splitlines()]
        self._listed = {line.get("output") for line in lines if line.get("status") != "failed"}

    def add(self, job: Job, result: JobResult) -> None:
        """Note the result of a job."""
        record = result.record
        self.write(
            job,
            status="doubted" if result.doubts else "done",
            input_sha256=record["inputs"][0]["sha256"],
            samples_sha256=record["output"].get("samples_sha256"),
            doubts=result.doubts,
            warnings=record.get("warnings", []),
            notes=record["notes"],
            rerun=record["rerun"],
            seconds=round(result.seconds, 4),
        )

    def add_existing(self, job: Job) -> None:
        """Note an output that an earlier run wrote without a line, with its hash and the line that repeats it."""
        from deconv_cli.io.files import fingerprint
        from deconv_cli.io.records import read_beside

        if str(job.target) in self._listed:
            return
        recorded: dict[str, Any] = {}
        with contextlib.suppress(DeconvError):  # a damaged record says nothing
            recorded = read_beside(job.target) or {}
        self.write(job, status="exists", output_sha256=fingerprint(job.target), rerun=recorded.get("rerun"))

    def close(self) -> None:
        """Close the file."""
        with self._explaining():
            self._stream.close()

    def write(self, job: Job, **members: object) -> None:
        """Write the line of a job."""
        # In ASCII, since a file name may hold bytes that are no UTF-8.
        line = json.dumps({"input": str(job.source), "output": str(job.target)} | members)
        with self._explaining():
            self._stream.write(f"{line}\n")
            self._stream.flush()


class BatchTask:
    """Does one job in any thread or process; `process` is the prepared work, which each other process prepares once.

    A result holds its images, to print its table, only if it `keeps_images`. Files of more than `most_samples` are not
    done. `progress_of` makes the listener of a job.
    """

    def __init__(
        self, work: Work, jobs: Iterable[Job], process: Process | None = None, *, keeps_images: bool = False
    ) -> None:
        self._work, self._process, self._keeps_images = work, process, keeps_images
        self._jobs = {job.number: job for job in jobs}
        self.progress_of: Callable[[Job], WorkProgress] = _listen_to_nobody
        self.most_samples: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what another process makes for itself."""
        return vars(self) | {"_process": None, "progress_of": _listen_to_nobody}

    def __call__(self, number: int) -> JobResult | None:
        """Read, process and write the input of one job; return `None` if it has too many samples. Errors are raised."""
        job = self._jobs[number]
        progress = self.progress_of(job)
        if self._process is None:
            self._process = self._work.open()
        most = self.most_samples
        with _READING:
            source = self._work.read(job)
            if most is not None and (isinstance(source, LargeInput) or source.values.numel() > most):
                return None
        result = self._process(job, source, progress)
        result = replace(result, seconds=time.perf_counter() - progress.started)
        return result if self._keeps_images else replace(result, print_summary=print_nothing)


def _recognize(job: Job) -> None:
    """Refuse, by `DeconvError`, an input of an unknown format, before torch is loaded, which takes seconds."""
    from deconv_cli.io.codec import codec_of_content
    from deconv_cli.io.files import read_head

    codec_of_content(job.source, read_head(job.source))


def _listen_to_nobody(job: Job) -> WorkProgress:
    return WorkProgress(job.label, is_silent=True)


class Batch:
    """A run of one command over its inputs."""

    def __init__(
        self, command: str, files: FileOptions, printed: PrintOptions, options: BatchOptions, workers: WorkOptions
    ) -> None:
        self._command, self._printed, self._options, self._workers = command, printed, options, workers
        self._replaces = files.force
        self._manifest: Manifest | None = None
        self._records: dict[int, dict[str, Any]] = {}
        self._failures: list[tuple[Job, str, ExitCode]] = []
        self._skipped: list[Path] = []
        self._left_out: list[str] = []
        self._sentences: dict[tuple[int, str], tuple[Callable[[str], None], str, dict[str, bool]]] = {}
        self._n_done = self._n_doubted = 0
        self._meets_existing = False

    def run(self, jobs: list[Job], work: Work, left_out: Sequence[Path] = ()) -> None:
        """Do the work for every job; if one of several fails, the others go on.

        The JSON names the files `left_out`, which are no inputs.

        Raises:
            DeconvError: the only job failed, the kernel cannot be read, or the manifest cannot be used.
            typer.Exit: some job failed, or gave a result that is not to be trusted.
        """
        if len(jobs) > 1 and self._workers.are_given and self._printed.verbose:
            raise UsageError(
                "--verbose prints the work of this process, but other processes do the work; leave it out, or leave "
                "out --jobs and --scheduler."
            )
        options = self._options
        if options.manifest is not None:
            self._manifest = Manifest(options.manifest, appends=options.skip_existing, force=self._replaces)
        started = time.monotonic()
        self._left_out = [str(path) for path in left_out]
        skipped = dict.fromkeys(job for job in jobs if options.skip_existing and job.target.exists())
        wanted = [job for job in jobs if job not in skipped]
        self._skipped = [job.source for job in skipped]
        try:
            if self._manifest is not None:
                for job in skipped:
                    self._manifest.add_existing(job)
            if wanted:
                self._work_off(wanted, work)
        except KeyboardInterrupt:
            if len(jobs) > 1 and not self._printed.quiet:
                option = f"--skip-existing{' instead of --force' if self._replaces else ''}"
                done = f"{self._n_done} of {counted(len(jobs), 'input')} were done"
                print_note(f"{done}; run the same command with {option} to continue with the others.")
            raise
        finally:
            self._print_sentences()
            if self._manifest is not None:
                self._manifest.close()
        self._failures.sort(key=lambda failure: failure[0].number)
        if self._printed.as_json:
            is_single = len(jobs) == 1 and not self._skipped
            others = {"left_out": self._left_out} if self._left_out else {}
            print_document(self._records[jobs[0].number] | others if is_single else self._document())
        if not self._printed.quiet:
            for sentence in self._summary(jobs, time.monotonic() - started):
                print_note(sentence)
        if self._failures and not self._n_done and not self._skipped:
            raise typer.Exit(self._failures[0][2])
        if self._failures or self._n_doubted:
            raise typer.Exit(ExitCode.UNTRUSTWORTHY)

    def _work_off(self, jobs: list[Job], work: Work) -> None:
        """Do small files side by side, and then the others one by one, with all cores for each."""
        if jobs[0].n_jobs == 1:
            self._take(jobs[0], attempt(lambda _: _recognize(jobs[0]), jobs[0].number))
        load_torch()
        import torch

        from deconv_cli.blocks.block_problem import MAX_BYTES_A_SAMPLE

        quiet, verbose = self._printed.quiet, self._printed.verbose
        task = BatchTask(work, jobs, work.open(), keeps_images=len(jobs) == 1 or verbose)
        if len(jobs) == 1:
            with self._progress_of(jobs[0]).shown() as progress:
                task.progress_of = lambda _: progress
                finished = attempt(task, jobs[0].number)
            if (result := self._take(jobs[0], finished)) is not None:
                self._announce(jobs[0], result, is_only=jobs[0].n_jobs == 1)
            return
        with PieceProgress(len(jobs), is_silent=quiet).shown() as pieces:
            if self._workers.are_given:
                with self._workers.start(work.device_type) as scheduler:
                    if not quiet:
                        print_workers(scheduler)
                    task = BatchTask(work.for_workers(scheduler.n_sharing), jobs)
                    self._do(scheduler, task, jobs, pieces, work.refuse_existing)
                return
            # Two pictures of 512 × 512 with a thread each take half the time that they take one by one with two
            # threads. There is one file more than cores, since one of them mostly waits for the disk.
            n_threads = min(len(jobs), 1 + (torch.get_num_threads() if work.device_type == "cpu" else N_ON_DEVICE))
            if n_threads > 1 and not (work.is_alone or verbose):
                large = {job for job in jobs if is_large(job.source)}
                small = [job for job in jobs if job not in large]
                task.most_samples = work.memory() // n_threads // MAX_BYTES_A_SAMPLE
                with self._workers.start(work.device_type, threads=n_threads) as scheduler:
                    task.progress_of = partial(self._progress_of, pieces=pieces, ends=lambda: scheduler.is_ending)
                    large |= self._do(scheduler, task, small, pieces)
                task.most_samples = None
                jobs = [job for job in jobs if job in large]
            task.progress_of = partial(self._progress_of, pieces=pieces)
            with self._workers.start(work.device_type) as scheduler:
                self._do(scheduler, task, jobs, pieces)

    def _do(
        self,
        scheduler: Scheduler,
        task: BatchTask,
        jobs: list[Job],
        pieces: PieceProgress,
        check: Callable[[Job], None] = lambda _: None,
    ) -> set[Job]:
        """Let a scheduler do jobs, and print the results in their order; return the jobs with too many samples.

        `check` refuses a job, by `DeconvError`, just before a worker gets it.
        """
        by_number, ended, left = {job.number: job for job in jobs}, dict[int, JobResult](), set[Job]()
        unprinted = deque(by_number)
        try:
            with contextlib.closing(_results(scheduler, task, jobs, check)) as results:
                for finished in results:  # running jobs end before the manifest does
                    job = by_number[finished.number]
                    with pieces.paused():
                        result = self._take(job, finished)
                        if result is not None:
                            ended[job.number] = result
                        else:
                            unprinted.remove(job.number)
                        while unprinted and unprinted[0] in ended:
                            self._announce(by_number[unprinted[0]], ended.pop(unprinted.popleft()))
                    if result is None and finished.error is None:
                        left.add(job)
                    else:
                        pieces.advance()
        finally:
            for number in sorted(ended):
                self._announce(by_number[number], ended[number])
        return left

    def _progress_of(
        self, job: Job, pieces: PieceProgress | None = None, ends: Callable[[], bool] | None = None
    ) -> WorkProgress:
        printed, show = self._printed, None if pieces is None else pieces.tell
        return WorkProgress(job.label, verbose=printed.verbose, is_silent=printed.quiet, show=show, ends=ends)

    def _take(self, job: Job, finished: Finished[JobResult | None]) -> JobResult | None:
        """Note in the manifest how a job ended, and print an error; that of the only job is raised."""
        from deconv_cli.io.atomic import OutputExistsError

        error, result = finished.error, finished.result
        if error is not None:
            error = as_too_large(error) or error
            if isinstance(error, DeconvError):
                sentence, code = with_options(str(error)), exit_code_for(error)
            else:
                sentence, code = f"unexpected {type(error).__name__}: {error}", ExitCode.FAILURE
            if self._manifest is not None:
                self._manifest.write(job, status="failed", error=sentence)
            if job.n_jobs == 1:
                self._failures.append((job, sentence, code))
                if self._printed.as_json:
                    print_document(self._document())
                raise error
            if not isinstance(error, DeconvError):
                traceback.print_exception(error)
            print_error(about(job.source, sentence))
            self._meets_existing |= isinstance(error, OutputExistsError)
            # The error itself would keep its images in memory.
            self._failures.append((job, sentence, code))
        elif result is not None and self._manifest is not None and not result.is_partial:
            self._manifest.add(job, result)
        return result

    def _announce(self, job: Job, done: JobResult, *, is_only: bool = False) -> None:
        """Print the result of a job, and keep nothing that holds its images."""
        from deconv_cli.io.codec import codec_named

        printed, record = self._printed, done.record
        if not printed.quiet and (is_only or printed.verbose):
            done.print_summary()
        else:
            name = "" if is_only else str(job.source)
            for doubt in done.doubts:
                self._keep_sentence(name, doubt, print_warning, N_NAMED)
            for warning in () if printed.quiet else record.get("warnings", ()):
                self._keep_sentence(name, warning, print_warning)
            notes, codec = list(record.get("notes", ())), codec_named(job.source)
            if record.get("light_reason") and not is_only and codec is not None and codec.is_picture:
                verb = "blurred" if record["command"] == "forward" else "restored"
                notes.insert(0, f"{verb} {record['light_reason']}")
            for note in () if printed.quiet else notes:
                self._keep_sentence(name, note, print_note)
        if printed.as_json:
            self._records[job.number] = record
        elif not done.is_partial:
            print_answer(record["output"]["path"])
        self._n_done += 1
        self._n_doubted += bool(done.doubts)

    def _keep_sentence(self, name: str, sentence: str, show: Callable[[str], None], n_named: int = 1) -> None:
        """Keep a sentence and its input for the end; sentences that differ only in their numbers count as one."""
        kind = NUMBER.sub(lambda n: n[0] if sentence[: n.start()].endswith("channel ") else "", sentence)
        _, first, names = self._sentences.setdefault((n_named, kind), (show, sentence, {}))
        names.setdefault(name, sentence == first)

    def _print_sentences(self) -> None:
        """Print each sentence once, and name its input or several; numbers that differ are those of the first alone."""
        for (n_named, _), (show, sentence, is_same) in self._sentences.items():
            names, also = list(is_same), ""
            if not all(is_same.values()):
                also = f" (with other numbers also {name_some(names[1:], n_named)})"
                names = names[:1]
            n_more = len(names[n_named:])
            where = ", ".join(names[:n_named]) + (f" and {counted(n_more, 'more file')}" if n_more else "")
            show(f"{where}: {with_options(sentence)}{also}" if where else with_options(sentence))

    def _document(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "command": self._command,
            "results": [self._records[number] for number in sorted(self._records)],
            "failed": [{"path": str(job.source), "error": sentence} for job, sentence, _ in self._failures],
            "skipped": [str(path) for path in self._skipped],
            "left_out": self._left_out,
        }

    def _summary(self, jobs: list[Job], seconds: float) -> Iterator[str]:
        """Count the jobs by how they ended; for a single job, note only that it was skipped."""
        if len(jobs) == 1:
            if self._skipped:
                yield f"{jobs[0].source}: skipped, since its output '{jobs[0].target}' exists already."
            return
        others = f" ({self._n_doubted} of them doubted)" if self._n_doubted else ""
        counts = {"failed": len(self._failures), "skipped": len(self._skipped)}
        others += "".join(f", {n} {what}" for what, n in counts.items() if n)
        were = "was" if self._n_done == 1 else "were"
        yield f"{self._n_done} of {counted(len(jobs), 'input')} {were} done{others}, in {format_duration(seconds)}."
        if self._failures:
            names = [str(job.source) for job, _, _ in self._failures]
            yield f"failed: {name_some(names, N_NAMED)}"
        if self._meets_existing:
            yield "--skip-existing keeps the outputs that exist, and --force replaces them"


def _results(
    scheduler: Scheduler, task: BatchTask, jobs: list[Job], check: Callable[[Job], None]
) -> Generator[Finished[JobResult | None], None, None]:
    """Yield how each job ended; a job that `check` refuses, just before a worker gets it, ends with that error."""
    refused: list[Finished[JobResult | None]] = []

    def begun() -> Iterator[int]:
        for job in jobs:
            try:
                check(job)
            except DeconvError as error:
                refused.append(Finished(job.number, error=error))
            else:
                yield job.number

    yield from scheduler.run(task, begun())
    yield from refused


def list_jobs(jobs: Iterable[Job], files: FileOptions, *, as_json: bool) -> None:
    """Print which output each input would have, whether it exists, and which inputs cannot be read.

    Raises:
        typer.Exit: some inputs cannot be read, with the exit code of the run itself.
    """
    planned, code = describe_jobs(jobs, files)
    if as_json:
        record = {"schema": SCHEMA, "command": "invert", "dry_run": True, "plan": None, "expected_time_s": None}
        print_document(record | {"planned": planned})
    for job in () if as_json else planned:
        line = f"{job['input']} → {job['output']}{' (exists already)' if job['exists'] else ''}"
        print_answer(line if job["fault"] is None else f"cannot be restored: {job['fault']}")
    raise typer.Exit(code)


def describe_jobs(jobs: Iterable[Job], files: FileOptions) -> tuple[list[dict[str, object]], ExitCode]:
    """Describe inputs and outputs as JSON; `fault` says why an input cannot be read, judged by its header.

    The exit code is that of the first fault if no input can be read, and `UNTRUSTWORTHY` if only some can.
    """
    from deconv_cli.io.image import fault_of

    planned, codes = list[dict[str, object]](), list[ExitCode]()
    for job in jobs:
        fault = fault_of(job.source, files.tensor, files.series)
        codes += [] if fault is None else [exit_code_for(fault)]
        named = {"input": str(job.source), "output": str(job.target), "exists": job.target.exists()}
        planned.append({**named, "fault": None if fault is None else with_options(str(fault))})
    if not codes:
        return planned, ExitCode.SUCCESS
    return planned, codes[0] if len(codes) == len(planned) else ExitCode.UNTRUSTWORTHY
