"""Options on many files, and the manifest of a run: a line of JSON for each file, which `--resume` reads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from deconv_cli.commands.option_groups import option, typed_options
from deconv_cli.commands.parallel import Job, JobResult
from deconv_cli.errors import DeconvError, FileAccessError, MalformedInputError, UsageError
from deconv_cli.settings import with_options

Line = dict[str, Any]
MANY_FILES = "Many files"
_NOT_SETTINGS = {
    *("inputs", "output", "force", "report", "as_json", "quiet", "verbose"),
    *("skip_existing", "manifest", "resume", "jobs", "scheduler"),
}
"""Parameters that do not change the result for a file."""


@dataclass(frozen=True)
class BatchOptions:
    """What to do with files that are done already, and where to record what was done."""

    skip_existing: Annotated[
        bool, option("--skip-existing", "Skip inputs whose output exists, without looking at its content.", MANY_FILES)
    ] = False
    manifest: Annotated[
        Path | None,
        option(
            "--manifest FILE.jsonl",
            "Write a line of JSON for each file as soon as it is done: result, hashes, time, doubts and errors.",
            MANY_FILES,
        ),
    ] = None
    resume: Annotated[
        bool,
        option(
            "--resume",
            "Continue an earlier run: with --manifest, process only files that failed, are missing or have changed; "
            "without it, the remaining blocks of one large file.",
            MANY_FILES,
        ),
    ] = False

    def check(self, *, force: bool) -> None:
        """Refuse, by `UsageError`, options that contradict one another, and a manifest at a URL."""
        if self.manifest is not None:
            from deconv_cli.io.files import refuse_address

            refuse_address(self.manifest, is_output=True)
        if self.resume and self.manifest is None:
            raise UsageError(
                "--resume continues a manifest, or one file that is restored in blocks; name the manifest with "
                "--manifest FILE.jsonl, or leave --resume out."
            )
        if self.skip_existing and (force or self.resume):
            other = "--force" if force else "--resume"
            raise UsageError(f"--skip-existing keeps existing outputs, but {other} replaces them; use one of the two.")


def settings_of(invocation: typer.Context) -> dict[str, Any]:
    """List the typed options that change results, as JSON, with the SHA-256 of each file that they name."""
    from deconv_cli.io import fingerprint

    typed = {name: invocation.params[name] for name in sorted(typed_options(invocation) - _NOT_SETTINGS)}
    settings = {name: _as_json(value) for name, value in typed.items()}
    return settings | {"files": {str(path): fingerprint(path) for path in files_read(invocation)}}


def files_read(invocation: typer.Context) -> list[Path]:
    """List the files besides the inputs that a run reads."""
    names = sorted(typed_options(invocation) - _NOT_SETTINGS - {"error_map", "trust_mask"})
    return [path for name in names for path in _files_in(_as_json(invocation.params[name]))]


def _as_json(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_as_json(one) for one in value]
    if isinstance(value, Enum):
        return value.value
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _files_in(value: object) -> list[Path]:
    """Find the files that a value names: `kernel.npy` and `code.py:Class`."""
    if isinstance(value, list):
        return [path for one in value for path in _files_in(one)]
    if not isinstance(value, str) or not value:
        return []
    candidates = (Path(value), Path(value.rpartition(":")[0]))
    try:
        return [path for path in candidates if path.is_file()][:1]
    except (OSError, ValueError):
        return []


BEGUN, DONE, DOUBTED, FAILED = "begun", "done", "doubted", "failed"
"""The status of a file; the output of one that was only begun may exist."""


class Manifest:
    """Records how each file ended as soon as it ends, so that a killed run can be resumed.

    A closed manifest has one line for each file, the latest. Each line ends with its digest.

    Args:
        path: the file, one JSON object a line.
        settings: the typed settings, as JSON; see `settings_of`.
        resume: continue the file, instead of a new one.
        force: whether an existing file may be replaced.

    Raises:
        UsageError: the file exists already, without `resume` or `force`, or is a pipe or a device.
        MalformedInputError: the file to resume is no manifest, or a line is damaged.
        FileAccessError: it cannot be read or written.
    """

    def __init__(self, path: Path, settings: Line, *, resume: bool, force: bool) -> None:
        self.path, self._settings, self._adding = path, settings, threading.Lock()
        if path.exists() and not (resume or force):
            raise UsageError(
                f"the manifest '{path}' exists already; continue it with resume=True, or choose another name."
            )
        self._lines = _read(path) if resume and path.exists() else {}
        with self._refusing():
            # Drops a line that was cut off.
            self._rewrite()
            self._stream = path.open("a", encoding="utf-8")

    def wrote(self, job: Job) -> bool:
        """Return whether an earlier run wrote the output of a job, or was about to."""
        line = self._lines.get(str(job.target), {})
        return line.get("status") == BEGUN or line.get("output_sha256") is not None

    def has_other_settings(self, job: Job) -> bool:
        """Return whether an earlier run did a job with other settings."""
        return self._lines.get(str(job.target), {}).get("settings", self._settings) != self._settings

    def line_of(self, job: Job) -> Line | None:
        """Return the line of a job that ended well with these settings, to compare with the files; else `None`."""
        line = self._lines.get(str(job.target))
        is_same = line is not None and (line["input"], line.get("settings")) == (str(job.source), self._settings)
        return line if line is not None and is_same and line["status"] in (DONE, DOUBTED) else None

    def doubts_of(self, job: Job) -> list[str] | None:
        """Return why the result of a job was doubted, a sentence each; `None` if it was not."""
        line = self._lines.get(str(job.target), {})
        doubts = line.get("doubts")
        sentences = [str(doubt) for doubt in doubts] if isinstance(doubts, list) else []
        return sentences if line.get("status") == DOUBTED else None

    def begin(self, job: Job) -> None:
        """Record that an output is about to be written."""
        self._add(job, {"status": BEGUN})

    def end(self, done: JobResult) -> None:
        """Record how a job ended."""
        line: Line = {"status": FAILED, "error": with_options(str(done.error))}
        if done.record is None:
            line["input_sha256"] = _fingerprint(done.job.source)
            if self.wrote(done.job):  # before
                line["output_sha256"] = _fingerprint(done.job.target)
        else:
            record, doubts = done.record, [with_options(doubt) for doubt in done.doubts]
            line = {
                "status": DOUBTED if doubts else DONE,
                "input_sha256": record["inputs"][0]["sha256"] or _fingerprint(done.job.source),
                "output_sha256": _fingerprint(done.job.target),
                "samples_sha256": record["output"].get("samples_sha256"),
                "doubts": doubts,
                "warnings": [with_options(warning) for warning in done.warnings],
                "notes": [with_options(note) for note in record["notes"]],
                "rerun": record["rerun"],
            }
        self._add(done.job, line | {"seconds": round(done.seconds, 4), "settings": self._settings})

    def close(self, jobs: list[Job]) -> None:
        """Write one line for each file, in the order of the jobs, after those of other files."""
        with self._refusing():
            self._stream.close()
        self._lines |= {
            name: self._lines.pop(name) for name in (str(job.target) for job in jobs) if name in self._lines
        }
        self._rewrite()

    def _add(self, job: Job, line: Line) -> None:
        line = {"input": str(job.source), "output": str(job.target)} | line
        with self._adding:  # jobs are begun in several threads
            self._lines[str(job.target)] = line
            with self._refusing():
                self._stream.write(_encoded(line))
                self._stream.flush()

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        from deconv_cli.io.files import reason_of

        try:
            yield
        except OSError as error:
            if isinstance(error, DeconvError):
                raise
            raise FileAccessError(f"the manifest '{self.path}' cannot be written: {reason_of(error)}.") from error

    def _rewrite(self) -> None:
        from deconv_cli.io.atomic import write_atomically

        text = "".join(map(_encoded, self._lines.values()))

        def write(path: Path) -> None:
            path.write_text(text, encoding="ascii")

        write_atomically(self.path, write, lambda _: None)


def is_up_to_date(line: Line, job: Job) -> bool:
    """Return whether the files of a job have the hashes of a line."""
    wanted = (line["input_sha256"], line["output_sha256"])
    return None not in wanted and (_fingerprint(job.source), _fingerprint(job.target)) == wanted


def _fingerprint(path: Path) -> str | None:
    """Compute the SHA-256 of a file; `None` if it cannot be read."""
    from deconv_cli.io import fingerprint

    try:
        return fingerprint(path)
    except DeconvError:
        return None


def _encoded(line: Line) -> str:
    from deconv_cli.io.records import seal_record

    # In ASCII, since a file name may hold bytes that are no UTF-8.
    return seal_record(line) + "\n"


def _read(path: Path) -> dict[str, Line]:
    """Read the latest line for each output; ignore a last line that was cut off, unless it is the only one."""
    from deconv_cli.io.files import read_lines
    from deconv_cli.io.records import open_sealed

    try:
        *encoded, rest = read_lines(path).split("\n")
    except OSError as error:
        raise FileAccessError(f"the manifest '{path}' cannot be read.") from error
    if rest and (not encoded or '"}' in rest[-3:]):
        encoded.append(rest)
    lines: dict[str, Line] = {}
    for number, one in enumerate(encoded, start=1):
        try:
            line = open_sealed(one)
            lines[line["output"]] = line | {"input": line["input"], "status": line["status"]}
        except (ValueError, TypeError, KeyError) as error:
            raise MalformedInputError(
                f"line {number} of '{path}' is damaged, comes from another version of deconv, or the file is not a "
                "manifest; remove the line, or choose another file for the manifest."
            ) from error
    return lines
