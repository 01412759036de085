"""Streams, sentences and tables: the answer goes to stdout, everything else to stderr."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from deconv_cli.errors import FileAccessError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from rich.console import Console

Rows = list[tuple[str, str]]
"""Rows of a table: names and values."""
_UNWRAPPED = 100_000
"""Columns of a table in a pipe or a file."""
LONGEST_NAME = 48
"""Letters of the name of a file that a table on a screen shows."""


class _StandardStream(io.FileIO):
    """Stdout or stderr as a pipe or a file; drops everything after a failed write."""

    _is_lost = False

    def write(self, data: ReadableBuffer, /) -> int:
        """Write bytes; ignore a reader that left, as `head` does.

        Raises:
            FileAccessError: stdout cannot be written, for example because the disk is full.
        """
        n_bytes = memoryview(data).nbytes
        try:
            return n_bytes if self._is_lost else super().write(data)
        except OSError as error:
            self._is_lost = True
            # On Windows a reader that left is an invalid argument.
            is_left = isinstance(error, BrokenPipeError) or (sys.platform == "win32" and error.errno == errno.EINVAL)
            if is_left or self.fileno() == 2:
                return n_bytes
            raise FileAccessError(f"the answer cannot be written to stdout: {error.strerror}.") from error


def prepare_streams() -> None:
    """Keep stdout and stderr from failing if the reader leaves, or a file name is not valid text."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        is_as_it_came = name == "stdout" and "utf" in getattr(stream, "encoding", "").lower()
        errors = "surrogateescape" if is_as_it_came else "backslashreplace"
        if stream is None:  # it was closed before the program began
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif stream.isatty():
            stream.reconfigure(errors=errors)
        elif isinstance(stream, io.TextIOWrapper):
            raw = io.BufferedWriter(_StandardStream(stream.fileno(), "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, errors, line_buffering=name == "stderr"))


def print_error(sentence: str) -> None:
    """Print an error on stderr."""
    _print_sentence("error:", "red", sentence)


def print_note(sentence: str) -> None:
    """Print a note on stderr."""
    _print_sentence("note:", "cyan", sentence)


def print_warning(sentence: str) -> None:
    """Print a warning on stderr."""
    _print_sentence("warning:", "yellow", sentence)


def _print_sentence(kind: str, color: str, sentence: str) -> None:
    """Print a sentence behind a word in color, unless NO_COLOR is set; Typer drops colors without a terminal."""
    word = kind if os.environ.get("NO_COLOR") else typer.style(kind, fg=color, bold=True)
    typer.echo(f"{word} {printable(sentence)}", err=True)


def print_document(document: dict[str, Any]) -> None:
    """Print one JSON document on stdout."""
    from deconv_cli.io.records import finite

    document = finite(document)
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:  # another locale, or a name that is not valid text; JSON has escapes for both
        text = json.dumps(document, indent=2, allow_nan=False)
    typer.echo(text)


def about(path: Path, sentence: str) -> str:
    """Begin a sentence with the file that it is about, unless it names the file itself."""
    return sentence if f"'{path}'" in sentence else f"{path}: {sentence}"


def print_answer(line: str) -> None:
    """Print a line of the answer on stdout, unchanged for a program that reads it."""
    typer.echo(printable(line) if sys.stdout.isatty() else line)


def printable(text: str) -> str:
    """Escape control characters and line ends: names and records come from files."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table_console(*, stderr: bool) -> Console:
    """Return a console that wraps tables only on a terminal, or if COLUMNS is set."""
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _UNWRAPPED
    return console


def shown_name(path: str) -> str:
    """Cut a long name in the middle if the table is on a screen: its end says what the file is."""
    return path if table_console(stderr=True).width == _UNWRAPPED else cut_in_middle(path, LONGEST_NAME)


def cut_in_middle(text: str, length: int) -> str:
    """Cut a long text in the middle, so that more of its end is left than of its beginning."""
    n_first = max(length, 10) // 5
    return text if len(text) <= length else f"{text[:n_first]}…{text[n_first + 1 - max(length, 10) :]}"


def print_table(
    title: str, rows: Iterable[Sequence[str]], headings: Sequence[str] = (), *, to_stdout: bool = False
) -> None:
    """Print a table on stderr, or on stdout if it is the answer; without headings, of names and values."""
    from rich.table import Table
    from rich.text import Text

    heading = Text(printable(title)) if title else None
    table = Table(title=heading, title_justify="left", show_header=bool(headings), box=None, pad_edge=False)
    table.header_style = "bold"
    if not headings:
        table.add_column(style="bold", no_wrap=True)
    for name in headings or ("",):
        table.add_column(name, overflow="fold")
    for row in rows:
        # Text, not markup: file names may hold brackets.
        table.add_row(*(Text(printable(cell)) for cell in row))
    table_console(stderr=not to_stdout).print(table)
