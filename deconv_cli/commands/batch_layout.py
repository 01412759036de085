"""Which of many files goes where."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from deconv_cli.commands.input_files import FoundFile, expand
from deconv_cli.commands.job import Job
from deconv_cli.errors import FileAccessError, UsageError


def lay_out(inputs: list[Path], output: str | None, *, ending: str) -> list[Job]:
    """Decide where each input's output goes.

    Args:
        inputs: files, folders and patterns; a folder stands for every readable file below it. What an earlier run made
            of such files, beside them or in the output folder, is none of them.
        output: a file, for a single input file; else a folder, which mirrors the tree of each input folder. Without it
            each output stands beside its input, in the same format. What is only read becomes PNG.
        ending: added to the name of an output that stands beside its input.

    Raises:
        UsageError: an input is missing, a folder is empty, or two outputs would be the same file.
        FileAccessError: the file system does not take a name.
    """
    try:
        jobs = _jobs(inputs, output, ending)
    except OSError as error:
        raise FileAccessError(f"the file system refuses the name of an input or output: {error.strerror}.") from error
    _check_collisions([job.target for job in jobs])
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
    """Leave out what was found in the output folder, unless inputs were searched for there and nowhere else."""
    inside = folder.resolve()
    kept = [file for file in files if file.is_named or inside not in file.path.resolve().parents]
    return kept or files


def refuse_clashes(jobs: list[Job], read: list[Path | None], written: list[Path | None]) -> None:
    """Refuse by `UsageError`, even under --force, to write over a file that the run reads or writes too.

    Args:
        jobs: their inputs are read, their outputs written.
        read: files that are read besides, and
        written: files that are written besides; `None` for what was not asked for.
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
    """Give what all names of a file have in common: its number on the disk, or its full path if it does not exist."""
    try:
        found = path.stat()
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino


def _check_collisions(targets: list[Path]) -> None:
    """Refuse outputs that would be written over one another."""
    for path, count in Counter(targets).items():
        if count > 1:
            raise UsageError(
                f"several inputs would be written to '{path}'; give the folders one at a time, or by a pattern in "
                "quotes, which keeps their tree."
            )


def _beside(source: Path, ending: str) -> Path:
    """Name an output after its input, in the same format; TIFF where the name says none."""
    from deconv_cli.io.codec import codec_named

    lower = source.name.lower()
    for double in (".ome.tif", ".ome.tiff", ".ome.zarr", ".fits.gz", ".fits.fz"):
        if lower.endswith(double):
            return source.with_name(source.name[: -len(double)] + ending + double)
    suffix = ".tif" if codec_named(source) is None else source.suffix
    return _writable(source.with_name(source.stem + ending + suffix))


def _writable(path: Path) -> Path:
    """Exchange the suffix of a format that is only read."""
    from deconv_cli.io.codec import codec_named

    codec = codec_named(path)
    return path.with_suffix(".png") if codec is not None and codec.is_read_only else path
