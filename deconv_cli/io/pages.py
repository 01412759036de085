"""Writing a page: asked for a place before anything is computed, written completely or not at all."""

from __future__ import annotations

from pathlib import Path

from deconv_cli.errors import UsageError
from deconv_cli.io.atomic import write_atomically
from deconv_cli.io.places import check_place, check_writable

SUFFIXES = (".html", ".htm")


def check_page_place(path: Path, source: Path, *, force: bool) -> None:
    """Refuse a place where no page can be.

    Args:
        path: the page.
        source: what it tells of.
        force: whether an existing file may be replaced.

    Raises:
        UsageError: another suffix, no such folder, or an existing file without `force`.
        FileAccessError: no permission to write into the folder.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"the page '{path}' should end in .html.")
    check_writable(path, check_place(path, source, force=force))


def write_page(path: Path, text: str) -> None:
    """Write a page; an existing file is replaced.

    Raises:
        FileAccessError: disk full, no permission, or the file does not read back.
    """
    # As bytes: the page names its own script by its hash, which another line ending would change. File names may hold
    # what is no letter at all.
    content = text.encode("utf-8", errors="replace")

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    def check(temporary: Path) -> None:
        if temporary.read_bytes() != content:
            raise ValueError("some bytes differ")

    write_atomically(path, write, check)
