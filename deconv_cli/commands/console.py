"""What people see: everything goes to stderr, so that stdout carries the answer alone."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from deconv_cli.errors import FileAccessError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from rich.console import Console

_UNWRAPPED = 100_000
"""Columns of a table in a pipe or a file."""


class _StandardStream(io.FileIO):
    """Stdout or stderr as a pipe or a file; after a failed write it drops what follows."""

    _is_lost = False

    def write(self, data: ReadableBuffer, /) -> int:
        """Write bytes; a reader that left, as `head` does, has what it wanted.

        Raises:
            FileAccessError: stdout takes no more, as on a full disk.
        """
        n_bytes = memoryview(data).nbytes
        try:
            return n_bytes if self._is_lost else super().write(data)
        except OSError as error:
            self._is_lost = True
            if isinstance(error, BrokenPipeError) or self.fileno() == 2:
                return n_bytes
            raise FileAccessError(f"the answer cannot be written to stdout: {error.strerror}.") from error


def prepare_streams() -> None:
    """Keep stdout and stderr from failing: a reader may leave, and a name may hold bytes that are no text."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        is_as_it_came = name == "stdout" and "utf" in getattr(stream, "encoding", "").lower()
        errors = "surrogateescape" if is_as_it_came else "backslashreplace"
        if stream is None:  # it was closed before the program began
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif stream.isatty():
            stream.reconfigure(errors=errors)
        elif isinstance(stream, io.TextIOWrapper):
            raw = io.BufferedWriter(_StandardStream(stream.fileno(), "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, errors, line_buffering=name == "stderr"))


def print_error(sentence: str) -> None:
    """Print an error on stderr."""
    typer.echo(f"{_styled('error:', 'red')} {printable(sentence)}", err=True)


def print_note(sentence: str) -> None:
    """Print a note on stderr."""
    typer.echo(f"{_styled('note:', 'cyan')} {printable(sentence)}", err=True)


def print_warning(sentence: str) -> None:
    """Print a warning on stderr."""
    typer.echo(f"{_styled('warning:', 'yellow')} {printable(sentence)}", err=True)


def print_document(document: dict[str, Any]) -> None:
    """Print one JSON document on stdout."""
    from deconv_cli.io.records import finite

    document = finite(document)
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:  # another locale, or a name with bytes that are no text; JSON has escapes for them
        text = json.dumps(document, indent=2, allow_nan=False)
    typer.echo(text)


def print_answer(line: str) -> None:
    """Print a line of the answer on stdout; a program that reads it gets a name as it is."""
    typer.echo(printable(line) if sys.stdout.isatty() else line)


def printable(text: str) -> str:
    """Escape what could steer a terminal or begin a line of its own: names and records come from files."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table_console(*, stderr: bool) -> Console:
    """Give a console that breaks the lines of a table on a terminal, and where COLUMNS asks for it."""
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _UNWRAPPED
    return console


def print_table(title: str, rows: list[tuple[str, str]], *, to_stdout: bool = False) -> None:
    """Print a table of names and values on stderr, or where it is the answer itself, on stdout."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(title)), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        # Text, not markup: file names may hold brackets.
        table.add_row(Text(printable(name)), Text(printable(value)))
    table_console(stderr=not to_stdout).print(table)


def _styled(word: str, color: str) -> str:
    """Color a word, unless NO_COLOR says not to; Typer itself drops colors where there is no terminal."""
    return word if os.environ.get("NO_COLOR") else typer.style(word, fg=color, bold=True)
