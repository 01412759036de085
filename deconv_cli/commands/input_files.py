"""The inputs that an argument names, such as the files of a folder, and which output belongs to which input."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from deconv_cli.commands.console import print_note
from deconv_cli.commands.work import Job
from deconv_cli.errors import FileAccessError, UsageError

FOLDS_CASE = ("win32", "darwin")
"""Systems whose folders usually hold either `A.png` or `a.png`."""

_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class FoundFile:
    """One file, its place in an output folder, and whether an argument is this very file, no folder or pattern."""

    path: Path
    place: Path
    is_named: bool = False


def expand(argument: Path) -> list[FoundFile]:
    """List the files that an argument names, in natural order: `frame_9` before `frame_10`.

    Args:
        argument: a file, or a folder that is one file, as a Zarr is; any other folder, for every readable
            file below it; or a pattern with `*`, `?`, `[...]` or `**` that the shell did not expand. Hidden files are
            skipped.

    Raises:
        UsageError: no file exists there, or none is readable.
    """
    what = "is a link to a file that does not exist" if argument.is_symlink() else "does not exist"
    missing = UsageError(f"the input '{argument}' {what}; check the path.")
    if not argument.exists() and not is_pattern(argument) and ":" not in str(argument):
        raise missing  # before torch is loaded, which takes seconds
    from deconv_cli.io.codec import codec_named
    from deconv_cli.io.files import is_one_file, refuse_address

    refuse_address(argument)
    if argument.is_dir() and not is_one_file(argument):
        base, matches = argument, [argument]
        empty = UsageError(f"the folder '{argument}' holds no readable picture or tensor.")
    elif argument.exists():  # reading it will say whether it is an ordinary file
        return [FoundFile(argument, Path(argument.name), is_named=True)]
    elif is_pattern(argument):
        # The tree is that from the first part of the pattern that has wildcards.
        base = Path(*argument.parts[: [glob.has_magic(part) for part in argument.parts].index(True)])
        names = glob.glob(str(argument), recursive=True)  # noqa: PTH207  that of Path gives hidden files too
        matches = sorted(map(Path, names), key=natural_order)
        empty = UsageError(f"no readable picture or tensor matches '{argument}'; check the pattern and the folder.")
    else:
        raise missing
    files = dict.fromkeys(file for match in matches for file in sorted(_files_of(match), key=natural_order))
    found = [FoundFile(path, Path(os.path.relpath(path, base))) for path in files if codec_named(path) is not None]
    if not found:
        raise empty
    return found


def is_pattern(argument: Path) -> bool:
    """Return whether an argument is a pattern, and not a file with such a name."""
    return glob.has_magic(str(argument)) and not argument.exists()


def natural_order(path: Path) -> tuple[tuple[str | int, ...], ...]:
    """Return a key that sorts names as a person would, the numbers in them by their size."""
    return tuple(
        tuple(int(piece) if piece.isdecimal() else piece.casefold() for piece in _DIGITS.split(part))
        for part in path.parts
    )


def _files_of(path: Path) -> Iterator[Path]:
    """Go through all files below a folder except the hidden ones; a folder that is one file is not entered.

    A broken link counts as a file, so that reading it reports the error.
    """
    from deconv_cli.io.files import is_one_file

    def is_file(path: Path) -> bool:
        return is_one_file(path) or (path.is_symlink() and not path.exists())

    if is_file(path):
        yield path
        return
    for root, folders, files in os.walk(path):
        shown = [Path(root, name) for name in (*folders, *files) if not name.startswith(".")]
        whole = [one for one in shown if is_file(one)]
        folders[:] = [one.name for one in shown if one.name in folders and one not in whole]
        yield from whole


def lay_out(
    inputs: list[Path], output: str | None, *, ending: str, is_quiet: bool = False, force: bool = False
) -> tuple[list[Job], list[Path]]:
    """Decide where each input's output goes, note how many files are left out, and list them too.

    Args:
        inputs: files, folders and patterns; a folder means every readable file below it. A file that has the name of
            a result is left out if its source is there too; forward leaves out results of invert as well.
        output: a file, for a single input file; else a folder, which mirrors the tree of each input folder. Without it
            each output is written beside its input, in the same format, or as PNG if that is only read.
        ending: added to the name of an output beside its input.
        is_quiet: whether to print no note.
        force: whether outputs may replace files; never a named file that deconv did not write.

    Raises:
        UsageError: an input is missing, a folder is empty, two outputs would be the same file, one is a URL, or one
            would replace such a named file.
        FileAccessError: the file system does not take a name.
    """
    if ":" in str(output):  # most outputs are no address, and need no torch to see it
        from deconv_cli.io.files import refuse_address

        refuse_address(Path(str(output)), is_output=True)
    try:
        jobs, left_out = _jobs(inputs, output, ending)
    except OSError as error:
        raise FileAccessError(f"the file system refuses the name of an input or output: {error.strerror}.") from error
    replaced = {job.target for job in jobs}.intersection(left_out, inputs) if force else ()
    for path in replaced:
        from deconv_cli.io.image import is_result

        if not is_result(path):
            raise UsageError(
                f"'{path}' is named as an input, but has the name of a result and no record of deconv, and --force "
                "would replace it; choose other outputs with -o."
            )
    if left_out and not is_quiet:
        have, were = ("file has", "was") if len(left_out) == 1 else ("files have", "were")
        print_note(f"{len(left_out)} {have} the name of a result and {were} left out; to take one again, give it alone")
    from deconv_cli.io.codec import codec_named

    files = [file for path in inputs if path.is_dir() and not is_quiet for file in _files_of(path)]
    unread = (file for file in files if codec_named(file) is None and file.suffix != ".json")  # that of a record
    kinds = sorted(Counter(file.suffix.lower() or file.name for file in unread).items())
    if kinds:
        print_note(f"left out, as no pictures or tensors: {', '.join(f'{n} {kind}' for kind, n in kinds)}")
    for path, count in Counter(job.target for job in jobs).items():
        if count > 1:
            raise UsageError(
                f"several inputs would be written to '{path}'; give the folders one at a time, or as a pattern in "
                "quotes, which keeps the folder tree."
            )
    return [replace(job, number=number, n_jobs=len(jobs)) for number, job in enumerate(jobs, start=1)], left_out


def _jobs(inputs: list[Path], output: str | None, ending: str) -> tuple[list[Job], list[Path]]:
    """Pair the inputs with their outputs, and list the files that are left out."""
    found: dict[Path, FoundFile] = {}
    for file in (file for path in inputs for file in expand(path)):
        if file.is_named or file.path not in found:
            found[file.path] = file
    from deconv_cli.io.codec import codec_named
    from deconv_cli.io.files import is_one_file

    is_single_file = len(inputs) == 1 and next(iter(found.values())).is_named
    files = _without_results(list(found.values()), output, ending)
    if ending == "_forward":
        files = _without_results(files, output, "_restored")
    kept = {file.path for file in files}
    left_out = [path for path in found if path not in kept]
    if output is None:
        return [Job(file.path, _beside(file.path, ending)) for file in files], left_out
    is_folder = output.endswith(("/", os.sep)) or (Path(output).is_dir() and not is_one_file(Path(output)))
    if is_single_file and not is_folder:
        return [Job(files[0].path, Path(output))], []
    if is_one_file(Path(output)) or (codec_named(Path(output)) is not None and not is_folder):
        raise UsageError(f"several inputs need an output folder, but '{output}' names a file.")
    folder = Path(output)
    return [Job(file.path, folder / _writable(file.place), make_folder=True) for file in files], left_out


def _without_results(files: list[FoundFile], output: str | None, ending: str) -> list[FoundFile]:
    """Leave out files that have the name of a result beside its input, and those inside the output folder.

    A file that an argument names is left out only if outputs go beside their inputs, as a shell lists both for one
    pattern. If nothing else is there, all stay.
    """
    made = {_beside(file.path, ending) for file in files}
    inside = None if output is None else Path(output).resolve()

    def is_made(file: FoundFile) -> bool:
        if file.is_named and output is not None:
            return False
        return file.path in made or inside in file.path.resolve().parents

    return [file for file in files if not is_made(file)] or files


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
                raise UsageError(f"'{own}' would overwrite {taken[identity]}; choose another name.")
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
