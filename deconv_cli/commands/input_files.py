"""The files that an argument names: a file, those of a folder, or those that match a pattern."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deconv_cli.errors import UsageError

_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class FoundFile:
    """One file that an argument names.

    Attributes:
        path: the file.
        place: the place of its output in an output folder.
        is_named: whether the argument is this very file, and not a folder or a pattern.
    """

    path: Path
    place: Path
    is_named: bool = False


def expand(argument: Path) -> list[FoundFile]:
    """List the files that an argument names, in natural order: `frame_9` before `frame_10`.

    Args:
        argument: a file, an address, or a folder that is one file, as a Zarr is; any other folder, for every readable
            file below it; or a pattern with `*`, `?`, `[...]` or `**` that the shell did not expand. Hidden files are
            left out.

    Raises:
        UsageError: there is nothing, or nothing that can be read.
    """
    what = "is a link to a file that does not exist" if argument.is_symlink() else "does not exist"
    missing = UsageError(f"the input '{argument}' {what}; check the path.")
    if not argument.exists() and not is_pattern(argument) and ":" not in str(argument):
        raise missing  # neither a file nor an address; said before torch is loaded, which takes seconds
    from deconv_cli.io.files import is_one_file

    if is_one_file(argument):
        return [FoundFile(argument, Path(argument.name), is_named=True)]
    if argument.is_dir():
        found = _below(argument, argument)
        if not found:
            raise UsageError(f"the folder '{argument}' holds no picture or tensor that can be read.")
        return found
    if argument.exists():  # no ordinary file, as reading it will say
        return [FoundFile(argument, Path(argument.name), is_named=True)]
    if is_pattern(argument):
        return _matching(argument)
    raise missing


def is_pattern(argument: Path) -> bool:
    """Return whether an argument is a pattern, and not a file with such a name."""
    return glob.has_magic(str(argument)) and not argument.exists()


def natural_order(path: Path) -> tuple[tuple[str | int, ...], ...]:
    """Return a key that sorts names as a person would, the numbers in them by their size."""
    return tuple(
        tuple(int(piece) if piece.isdecimal() else piece.casefold() for piece in _DIGITS.split(part))
        for part in path.parts
    )


def _matching(pattern: Path) -> list[FoundFile]:
    """List the files that match a pattern, with the tree from its first part that has wildcards."""
    plain = [not glob.has_magic(part) for part in pattern.parts]
    base = Path(*pattern.parts[: plain.index(False)])
    names = glob.glob(str(pattern), recursive=True)  # noqa: PTH207  that of Path gives hidden files too
    matches = sorted(map(Path, names), key=natural_order)
    found: dict[Path, FoundFile] = {}
    for match in matches:
        for file in _readable(_files_of(match), base):
            found.setdefault(file.path, file)
    if not found:
        raise UsageError(
            f"no picture or tensor that can be read matches '{pattern}'; check the pattern and the folder."
        )
    return list(found.values())


def _below(folder: Path, base: Path) -> list[FoundFile]:
    """List the readable files of a folder and of those in it."""
    return _readable(sorted(_files_of(folder), key=natural_order), base)


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


def _readable(paths: Iterable[Path], base: Path) -> list[FoundFile]:
    from deconv_cli.io.codec import codec_named

    return [FoundFile(path, Path(os.path.relpath(path, base))) for path in paths if codec_named(path) is not None]
