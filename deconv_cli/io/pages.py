"""Writing an HTML page: its path is checked before anything is computed, it is written completely or not at all."""

from __future__ import annotations

from pathlib import Path

from deconv_cli.errors import UsageError
from deconv_cli.io.atomic import write_atomically
from deconv_cli.io.output_path import check_output_path

SUFFIXES = (".html", ".htm")


def check_page_path(path: Path, source: Path, *, force: bool) -> None:
    """Refuse a path where no page can be written, as `check_output_path` does, or of another suffix."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"the page '{path}' should end in .html.")
    check_output_path(path, source, force=force)


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
