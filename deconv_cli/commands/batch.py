"""One file or many: which file goes where, and how a run over many ends."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from deconv_cli.commands.console import print_document, print_error, print_note, print_warning
from deconv_cli.commands.exit_codes import ExitCode, exit_code_for
from deconv_cli.commands.option_groups import PrintOptions
from deconv_cli.commands.prompt_sentences import with_options
from deconv_cli.errors import DeconvError, FileAccessError, UsageError


@dataclass(frozen=True)
class Job:
    """One input and the place of its output.

    Attributes:
        source: the input file.
        target: the output file.
        make_folder: the target lies in an output folder, which is made where it is missing.
        label: which of many it is.
    """

    source: Path
    target: Path
    make_folder: bool = False
    label: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of one job.

    Attributes:
        record: the report.
        print_summary: prints it as a table for people.
        doubts: why the result is not to be trusted, a sentence each; empty where it is.
    """

    record: dict[str, Any]
    print_summary: Callable[[], None]
    doubts: tuple[str, ...] = ()

    @property
    def is_trusted(self) -> bool:
        """Whether nothing speaks against the result."""
        return not self.doubts


def lay_out(inputs: list[Path], output: str | None, *, ending: str) -> list[Job]:
    """Decide where each input's output goes.

    Args:
        inputs: files and folders; a folder stands for every readable file below it.
        output: a file, for a single input file; else a folder, which mirrors the tree of each input folder. Without it
            each output stands beside its input, in the same format. What is only read becomes PNG.
        ending: added to the name of an output that stands beside its input.

    Raises:
        UsageError: an input is missing, a folder is empty, or two outputs would be the same file.
        FileAccessError: the file system does not take a name.
    """
    try:
        return _jobs(inputs, output, ending)
    except OSError as error:
        raise FileAccessError(f"the file system refuses the name of an input or output: {error.strerror}.") from error


def _jobs(inputs: list[Path], output: str | None, ending: str) -> list[Job]:
    from deconv_cli.io.formats import codec_named

    entries = [entry for path in inputs for entry in _expand(path)]
    is_single_file = len(inputs) == 1 and not inputs[0].is_dir()
    if output is None:
        jobs = [Job(source, _beside(source, ending)) for source, _ in entries]
    elif is_single_file and not (Path(output).is_dir() or output.endswith(("/", os.sep))):
        jobs = [Job(entries[0][0], Path(output))]
    else:
        is_file_name = codec_named(Path(output)) is not None and not Path(output).is_dir()
        if Path(output).is_file() or (is_file_name and not output.endswith(("/", os.sep))):
            raise UsageError(f"several inputs need a folder to be written to, but '{output}' names a file.")
        jobs = [Job(source, Path(output) / _writable(relative), make_folder=True) for source, relative in entries]
    _check_collisions([job.target for job in jobs])
    if len(jobs) == 1:
        return jobs
    return [replace(job, label=f"file {n} of {len(jobs)}") for n, job in enumerate(jobs, start=1)]


def refuse_to_replace(kernels: list[Path], targets: list[Path]) -> None:
    """Refuse, even under --force, outputs that would be written over the kernels or the factor of the run.

    Raises:
        UsageError: one would.
    """
    for target in targets:
        if any(_is_same_file(target, kernel) for kernel in kernels):
            raise UsageError(f"the output '{target}' is what this run inverts by; choose another name.")


def _is_same_file(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:
        return False


def _check_collisions(targets: list[Path]) -> None:
    """Refuse outputs that would be written over one another."""
    for path, count in Counter(targets).items():
        if count > 1:
            raise UsageError(f"several inputs would be written to '{path}'; give the folders one at a time.")


def run(command: str, jobs: list[Job], process: Callable[[Job], Outcome], printed: PrintOptions) -> None:
    """Process every job; a failure among several is reported, and the others go on.

    Raises:
        DeconvError: the only job failed.
        typer.Exit: some job failed, or gave a result that is not to be trusted.
    """
    if len(jobs) == 1:
        record, is_trusted = _announce(process(jobs[0]), printed)
        if printed.as_json:
            print_document(record)
        if not is_trusted:
            raise typer.Exit(ExitCode.UNTRUSTWORTHY)
        return
    records: list[dict[str, Any]] = []
    failures: list[tuple[Job, DeconvError]] = []
    are_trusted = True
    for job in jobs:
        try:
            record, is_trusted = _announce(process(job), printed)
        except DeconvError as error:
            failures.append((job, error))
            print_error(f"{job.source}: {with_options(str(error))}")
        else:
            records.append(record)
            are_trusted = are_trusted and is_trusted
    if printed.as_json:
        print_document(
            {
                "schema": 1,
                "command": command,
                "results": records,
                "failed": [{"path": str(job.source), "error": with_options(str(error))} for job, error in failures],
            }
        )
    if not printed.quiet and failures:
        print_note(f"{len(records)} of {len(jobs)} inputs were done, {len(failures)} failed.")
    if failures and not records:
        raise typer.Exit(exit_code_for(failures[0][1]))
    if failures or not are_trusted:
        raise typer.Exit(ExitCode.UNTRUSTWORTHY)


def _announce(outcome: Outcome, printed: PrintOptions) -> tuple[dict[str, Any], bool]:
    """Print what became of a job; gives its record and whether to trust it, so that the images can be dropped."""
    if not printed.quiet:
        outcome.print_summary()
    else:
        for doubt in outcome.doubts:
            print_warning(with_options(doubt))
    if not printed.as_json:
        typer.echo(outcome.record["output"]["path"])
    return outcome.record, outcome.is_trusted


def _expand(path: Path) -> list[tuple[Path, Path]]:
    """List the files that an argument stands for, each with its place in the output folder."""
    if not path.exists():
        raise UsageError(f"the input '{path}' does not exist; check the path.")
    if not path.is_dir():
        return [(path, Path(path.name))]
    from deconv_cli.io.formats import codec_named

    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and codec_named(file) is not None
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise UsageError(f"the folder '{path}' holds no picture or tensor that can be read.")
    return [(file, file.relative_to(path)) for file in files]


def _beside(source: Path, ending: str) -> Path:
    """Name an output after its input, in the same format; TIFF where the name says none."""
    from deconv_cli.io.formats import codec_named

    lower = source.name.lower()
    for double in (".ome.tif", ".ome.tiff"):
        if lower.endswith(double):
            return source.with_name(source.name[: -len(double)] + ending + double)
    suffix = ".tif" if codec_named(source) is None else source.suffix
    return _writable(source.with_name(source.stem + ending + suffix))


def _writable(path: Path) -> Path:
    """Exchange the suffix of a format that is only read."""
    from deconv_cli.io.formats import codec_named

    codec = codec_named(path)
    return path.with_suffix(".png") if codec is not None and codec.is_read_only else path
