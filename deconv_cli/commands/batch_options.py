"""Options on many files, which output belongs to which input, and the settings that a manifest records."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from deconv_cli.commands.input_files import FoundFile, expand
from deconv_cli.commands.job import Job
from deconv_cli.commands.option_checks import typed_options
from deconv_cli.commands.option_groups import option
from deconv_cli.errors import FileAccessError, UsageError

MANY_FILES = "Many files"
FOLDS_CASE = ("win32", "darwin")
"""Systems whose folders usually hold either `A.png` or `a.png`."""
_NOT_SETTINGS = {
    *("inputs", "output", "force", "report", "show", "as_json", "quiet", "verbose"),
    *("skip_existing", "manifest", "resume", "jobs", "cluster", "scheduler"),
}
"""Parameters that do not change the result for a file."""


@dataclass(frozen=True)
class BatchOptions:
    """What to do with files that are done already, and where to record what was done."""

    skip_existing: Annotated[
        bool,
        option("--skip-existing", "Leave out inputs whose output exists already, whatever it holds.", MANY_FILES),
    ] = False
    manifest: Annotated[
        Path | None,
        option(
            "--manifest FILE.jsonl",
            "Write a line of JSON for each file as soon as it is done: what was done, hashes, time, doubts and errors.",
            MANY_FILES,
        ),
    ] = None
    resume: Annotated[
        bool,
        option(
            "--resume",
            "Continue where the manifest ends: repeat only what failed, is missing or has changed. Without a manifest: "
            "continue a run over blocks that ended early.",
            MANY_FILES,
        ),
    ] = False

    def check(self, *, force: bool) -> None:
        """Refuse options that contradict one another.

        Raises:
            UsageError: two of them do.
        """
        if self.resume and self.manifest is None:
            raise UsageError(
                "--resume continues a manifest, or one file that is restored in blocks; name the manifest with "
                "--manifest FILE.jsonl, or leave --resume out."
            )
        if self.skip_existing and (force or self.resume):
            other = "--force" if force else "--resume"
            raise UsageError(f"--skip-existing leaves outputs that exist, but {other} replaces them; use one of them.")


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
    """Find the files that a value names: `kernel.npy`, `model.pt:conv1` and `code.py:Class`."""
    if isinstance(value, list):
        return [path for one in value for path in _files_in(one)]
    if not isinstance(value, str) or not value:
        return []
    candidates = (Path(value), Path(value.rpartition(":")[0]))
    try:
        return [path for path in candidates if path.is_file()][:1]
    except (OSError, ValueError):
        return []


def lay_out(inputs: list[Path], output: str | None, *, ending: str) -> list[Job]:
    """Decide where each input's output goes.

    Args:
        inputs: files, folders and patterns; a folder means every readable file below it, without the outputs of
            an earlier run.
        output: a file, for a single input file; else a folder, which mirrors the tree of each input folder. Without it
            each output is written beside its input, in the same format, or as PNG if that is only read.
        ending: added to the name of an output beside its input.

    Raises:
        UsageError: an input is missing, a folder is empty, or two outputs would be the same file.
        FileAccessError: the file system does not take a name.
    """
    try:
        jobs = _jobs(inputs, output, ending)
    except OSError as error:
        raise FileAccessError(f"the file system refuses the name of an input or output: {error.strerror}.") from error
    for path, count in Counter(job.target for job in jobs).items():
        if count > 1:
            raise UsageError(
                f"several inputs would be written to '{path}'; give the folders one at a time, or by a pattern in "
                "quotes, which keeps their tree."
            )
    return [replace(job, number=number, n_jobs=len(jobs)) for number, job in enumerate(jobs, start=1)]


def _jobs(inputs: list[Path], output: str | None, ending: str) -> list[Job]:
    found: dict[Path, FoundFile] = {}
    for file in (file for path in inputs for file in expand(path)):
        if file.is_named or file.path not in found:
            found[file.path] = file
    from deconv_cli.io.codec import codec_named
    from deconv_cli.io.files import is_one_file

    files = list(found.values())
    is_single_file = len(inputs) == 1 and files[0].is_named
    if output is None:
        made = {_beside(file.path, ending) for file in files}
        return [Job(file.path, _beside(file.path, ending)) for file in files if file.is_named or file.path not in made]
    is_folder = output.endswith(("/", os.sep)) or (Path(output).is_dir() and not is_one_file(Path(output)))
    if is_single_file and not is_folder:
        return [Job(files[0].path, Path(output))]
    if is_one_file(Path(output)) or (codec_named(Path(output)) is not None and not is_folder):
        raise UsageError(f"several inputs need a folder to be written to, but '{output}' names a file.")
    folder = Path(output)
    return [Job(file.path, folder / _writable(file.place), make_folder=True) for file in _outside(files, folder)]


def _outside(files: list[FoundFile], folder: Path) -> list[FoundFile]:
    """Leave out files in the output folder, unless there are no others."""
    inside = folder.resolve()
    kept = [file for file in files if file.is_named or inside not in file.path.resolve().parents]
    return kept or files


def refuse_clashes(jobs: list[Job], read: list[Path | None], written: list[Path | None]) -> None:
    """Refuse by `UsageError`, even with --force, to overwrite a file that the run also reads or writes.

    Args:
        jobs: their inputs are read, their outputs written.
        read: other files that are read; `None` for options that were not given.
        written: other files that are written.
    """
    from deconv_cli.io.codec import codec_named
    from deconv_cli.io.records import beside

    taken: dict[object, str] = {}
    for path in filter(None, [*(job.source for job in jobs), *read]):
        for own in (path, beside(path)):
            taken[_identity(own)] = f"'{own}', which this run reads"
    for path in filter(None, [*(job.target for job in jobs), *written]):
        codec = codec_named(path)
        for own in [path] if codec is None or codec.record_inside else [path, beside(path)]:
            identity = _identity(own)
            if identity in taken:
                raise UsageError(f"'{own}' would be written over {taken[identity]}; choose another name.")
            taken[identity] = f"'{own}', which this run writes too"


def _identity(path: Path) -> object:
    """Identify a file whatever it is called: by its number on the disk, or by its full path if it does not exist."""
    try:
        found = path.stat()
    except OSError:
        full = os.path.realpath(path)
        return full.casefold() if sys.platform in FOLDS_CASE else full
    return found.st_dev, found.st_ino


def _beside(source: Path, ending: str) -> Path:
    """Name an output after its input, in the same format, or as TIFF if the name has no known suffix."""
    from deconv_cli.io.codec import codec_named

    lower = source.name.lower()
    for double in (".ome.tif", ".ome.tiff", ".ome.zarr", ".fits.gz", ".fits.fz"):
        if lower.endswith(double):
            return source.with_name(source.name[: -len(double)] + ending + double)
    suffix = ".tif" if codec_named(source) is None else source.suffix
    return _writable(source.with_name(source.stem + ending + suffix))


def _writable(path: Path) -> Path:
    """Replace the suffix of a format that is only read."""
    from deconv_cli.io.codec import codec_named

    codec = codec_named(path)
    return path.with_suffix(".png") if codec is not None and codec.is_read_only else path
