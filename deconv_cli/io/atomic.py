"""Writing a file completely or not at all, by a temporary file of a hidden name; where an output may be written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

from deconv_cli.errors import DeconvError, FileAccessError, UsageError
from deconv_cli.io.files import explaining, mark_of, reason_of, refuse_address, refuse_special, remove

PARTIAL, REPLACED = "partial", "replaced"
"""Endings of a file that is being written, and of a folder that another one replaces."""
_IN_PARTS = re.compile(rf"\..+\.{PARTIAL}(-[0-9a-f]{{8}})?", re.DOTALL)


class OutputExistsError(UsageError):
    """An output exists already, and nobody allowed to replace it."""


def write_atomically(path: Path, write: Callable[[Path], object], check: Callable[[Path], object]) -> None:
    """Write into a temporary file of the same folder, check it, then rename it to `path`.

    Until that last step the old file stays as it was. The temporary file is removed in any case, unless the process is
    killed. `write` writes the whole file under the name that it is given; `check` raises if the file does not read back
    as written.

    Raises:
        UsageError: the path is a pipe or a device.
        FileAccessError: disk full, no permission, or the file does not read back.
    """
    final = path.resolve() if path.is_symlink() else path  # the target of a link is replaced, in its own folder
    temporary = hidden_name(final, PARTIAL)
    try:
        refuse_special(final)
        write(temporary)
        synchronize(temporary)
        try:
            check(temporary)
        except FileAccessError:
            raise
        except Exception as error:
            raise FileAccessError(
                f"'{path}' was not written: reading the file back failed ({reason_of(error)}); check the disk and try "
                "again."
            ) from error
        put_in_place(temporary, final)
    except DeconvError:
        raise
    except Exception as error:
        raise FileAccessError(f"'{path}' cannot be written: {reason_of(error)}.") from error
    finally:
        with contextlib.suppress(OSError, DeconvError):
            remove(temporary)


def write_line_beside(path: Path, line: str, write_file: Callable[[], None]) -> None:
    """Write a line into its own file, which is renamed once `write_file` has put the file that it describes in place.

    So neither file is there for long alone. A link at the path is replaced itself.
    """
    if path.is_symlink():
        path.unlink()
    write_atomically(path, lambda temporary: temporary.write_bytes(f"{line}\n".encode()), lambda _: write_file())


def name_new(written: Path, final: Path) -> None:
    """Give a written file or folder its name, which must be new.

    Raises:
        FileExistsError: another process was first.
    """
    if written.is_dir():
        try:
            written.rename(final)
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:  # as some systems report it
                raise FileExistsError(*error.args) from error
            raise
        return
    try:
        os.link(written, final)
    except FileExistsError:
        raise
    except OSError:  # exFAT, and some folders of networks, have no links
        final.open("xb").close()
        written.replace(final)
    else:
        written.unlink()


def put_in_place(written: Path, final: Path) -> None:
    """Rename a written file or folder; what had the name before is replaced."""
    if not written.is_dir():
        written.replace(final)
    else:
        # A folder cannot replace one that holds something, so that one is renamed first.
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
    # Not every file system lets a folder be opened or synchronized; the file itself is safe by now.
    with contextlib.suppress(OSError):
        descriptor = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def synchronize(written: Path) -> None:
    """Wait until a file, or all files of a folder, are on the disk."""
    for file in written.rglob("*") if written.is_dir() else [written]:
        if file.is_file():
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())


def partial_path(path: Path) -> Path:
    """Name an unfinished file that is written part by part: the same for every process, and for a later run."""
    return path.with_name(f".{path.name}.{PARTIAL}")


def is_in_parts(path: Path) -> bool:
    """Check by its name whether a file is such an unfinished one."""
    return _IN_PARTS.fullmatch(path.name) is not None


def hidden_name(final: Path, ending: str) -> Path:
    """Make a new hidden name beside a file that is written as a whole; it keeps the suffix."""
    return final.with_name(f".deconv-{secrets.token_hex(8)}.{ending}{final.suffix}")


def process_name() -> str:
    """Name this process among those of all machines."""
    return f"{hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]}-{os.getpid()}"


def check_output_path(
    path: Path, source: Path, *, force: bool | None, make_folder: bool = False, is_folder: bool = False
) -> None:
    """Refuse a path where no file can be, or where one is that may not be replaced.

    Args:
        path: of the output.
        source: the file that the output is made from; it is never replaced.
        force: whether an existing file may be replaced; `None` where the caller decides that later.
        make_folder: whether a missing folder is made when the file is written.
        is_folder: files of the format are folders themselves.

    Raises:
        UsageError: no such folder, an existing file without `force`, the input itself, a pipe or a device.
        FileAccessError: no permission to write into the folder, or a name that the file system does not take.
    """
    refuse_address(path, is_output=True)
    with explaining(f"output '{path}' cannot be written"):
        folder = path.parent
        if make_folder:
            folder = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not folder.is_dir():
            raise UsageError(f"the folder '{folder}' of output '{path.name}' does not exist; make it first.")
        with contextlib.suppress(FileNotFoundError):
            (folder / path.name).lstat()  # where the folder is missing, the name may still be too long
        if path.is_dir() and not (is_folder and mark_of(path)):
            raise UsageError(f"output '{path}' should be a file, but is a folder.")
        refuse_special(path)
        if path.exists() and source.exists() and path.samefile(source):
            raise UsageError(f"output '{path}' is the input itself, which deconv never replaces; choose another name.")
        if force is False and path.exists():
            raise OutputExistsError(
                f"output '{path}' exists already; choose another name, or force=True to replace it."
            )
    if not os.access(folder, os.W_OK):
        raise FileAccessError(f"output '{path}' cannot be written: no permission to write into its folder.")


def make_parents(path: Path) -> None:
    """Make the missing folders around a file; raises `FileAccessError` if that fails."""
    with explaining(f"the folder of '{path}' cannot be made"):
        path.parent.mkdir(parents=True, exist_ok=True)


def check_page_path(path: Path, source: Path, *, force: bool) -> None:
    """Refuse a path where no page can be written, as `check_output_path` does, or of another suffix."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"the page '{path}' should end in .html.")
    check_output_path(path, source, force=force)


def write_page(path: Path, text: str) -> None:
    """Write a page, also over an existing file; raises `FileAccessError` if the disk refuses it."""
    # As bytes: the page names its own script by its hash, which another line ending would change. A file name may
    # hold characters that UTF-8 lacks.
    content = text.encode("utf-8", errors="replace")

    def check(temporary: Path) -> None:
        if temporary.read_bytes() != content:
            raise ValueError("some bytes differ")

    write_atomically(path, lambda temporary: temporary.write_bytes(content), check)
