"""Writing a file completely or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from deconv_cli.errors import DeconvError, FileAccessError
from deconv_cli.io.folders import address_of, refuse_special, remove
from deconv_cli.io.hidden_names import PARTIAL, REPLACED, hidden_name, left_of
from deconv_cli.io.sources import reason_of


def write_atomically(path: Path, write: Callable[[Path], None], check: Callable[[Path], None]) -> None:
    """Write into a temporary file of the same folder, check it, then put it in the place of `path`.

    Before that last step the old file stays as it was, and the temporary one is removed in any case; where the process
    is killed, by the next one that writes this file. `write` writes the whole file under the name that it is given;
    `check` raises if that file is not what was meant.

    Raises:
        UsageError: the path is a pipe or a device.
        FileAccessError: disk full, no permission, or the file does not read back.
    """
    if address_of(path):
        _write_at_address(path, write, check)
        return
    # A link keeps pointing where it did: its target is replaced, in the target's own folder.
    final = path.resolve() if path.is_symlink() else path
    temporary = hidden_name(final, PARTIAL)
    try:
        refuse_special(final)
        remove_left(final, PARTIAL)
        _checked(path, temporary, write, check)
        put_in_place(temporary, final)
    except DeconvError:
        raise
    except Exception as error:
        raise FileAccessError(f"'{path}' cannot be written: {reason_of(error)}.") from error
    finally:
        with contextlib.suppress(OSError):
            remove(temporary)


def write_line_beside(path: Path, line: str, write_file: Callable[[], None]) -> None:
    """Write the line that describes a file beside it: it waits, written, until `write_file` has put that in place.

    So neither of them is there for long alone. A link in its place, which nobody named, is replaced itself.
    """
    if path.is_symlink():
        path.unlink()
    write_atomically(
        path,
        lambda temporary: _write_line(temporary, line),
        lambda _: write_file(),
    )


def _write_line(path: Path, line: str) -> None:
    path.write_text(line + "\n", encoding="ascii")


def _checked(path: Path, temporary: Path, write: Callable[[Path], None], check: Callable[[Path], None]) -> None:
    write(temporary)
    synchronize(temporary)
    _check(path, temporary, check)


def put_in_place(written: Path, final: Path) -> None:
    """Give what was written its name, in the place of what had it."""
    if not written.is_dir():
        written.replace(final)
    else:
        # A folder takes the place of none that holds something, so that one goes away first.
        old = hidden_name(final, REPLACED)
        if final.exists():
            final.replace(old)
        try:
            written.replace(final)
        except BaseException:
            if old.exists():
                old.replace(final)
            raise
        remove(old)
        remove_left(final, REPLACED)
    _sync_folder(final.parent)


def remove_left(final: Path, ending: str) -> None:
    """Remove what runs that were killed left beside a file."""
    for left in left_of(final, ending):
        remove(left)


def synchronize(written: Path) -> None:
    """Wait until a file, or all files of a folder, are on the disk."""
    for file in written.rglob("*") if written.is_dir() else [written]:
        if file.is_file():
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())


def _write_at_address(path: Path, write: Callable[[Path], None], check: Callable[[Path], None]) -> None:
    """Write where nothing can be renamed: what is not whole yet lacks its description, and is removed on failure."""
    try:
        write(path)
        _check(path, path, check)
    except BaseException as error:
        with contextlib.suppress(DeconvError):
            remove(path)
        if isinstance(error, DeconvError) or not isinstance(error, Exception):
            raise
        raise FileAccessError(f"'{path}' cannot be written: {reason_of(error)}.") from error


def _check(path: Path, temporary: Path, check: Callable[[Path], None]) -> None:
    try:
        check(temporary)
    except FileAccessError:
        raise
    except Exception as error:
        raise FileAccessError(
            f"'{path}' was not written: the file did not read back as it should ({reason_of(error)}); "
            "check the disk and try again."
        ) from error


def _sync_folder(folder: Path) -> None:
    # Not every file system lets a folder be opened or synchronized; the file itself is safe by now.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
