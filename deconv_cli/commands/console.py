"""What people see: everything goes to stderr, so that stdout carries the answer alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer


def print_error(sentence: str) -> None:
    """Print an error on stderr, as it stands."""
    typer.echo(f"{_styled('error:', 'red')} {sentence}", err=True)


def print_note(sentence: str) -> None:
    """Print a note on stderr."""
    typer.echo(f"{_styled('note:', 'cyan')} {sentence}", err=True)


def print_warning(sentence: str) -> None:
    """Print a warning on stderr."""
    typer.echo(f"{_styled('warning:', 'yellow')} {sentence}", err=True)


def print_document(document: dict[str, Any]) -> None:
    """Print one JSON document on stdout."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(title: str, rows: list[tuple[str, str]], *, to_stdout: bool = False) -> None:
    """Print a table of names and values on stderr, or where it is the answer itself, on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        # Text, not markup: file names may hold brackets.
        table.add_row(Text(name), Text(value))
    Console(stderr=not to_stdout, highlight=False).print(table)


def _styled(word: str, color: str) -> str:
    """Color a word, unless NO_COLOR says not to; Typer itself drops colors where there is no terminal."""
    return word if os.environ.get("NO_COLOR") else typer.style(word, fg=color, bold=True)


class CertificateProgress:
    """Shows how the certificate falls: a moving line on a terminal, or a line an iteration when asked to be verbose."""

    def __init__(self, goal: float | None, *, verbose: bool) -> None:
        self._goal = goal
        self._verbose = verbose
        self._status: Any = None

    def __call__(self, iteration: int, certificate: float) -> None:
        """Take note of an iteration."""
        line = f"iteration {iteration}: certificate {certificate:.2e}"
        if self._goal is not None:
            line += f", goal {self._goal:.0e}"
        if self._verbose:
            typer.echo(line, err=True)
        elif self._status is not None:
            self._status.update(line)

    @contextmanager
    def shown(self) -> Iterator[CertificateProgress]:
        """Show the line while the block runs, if there is a terminal to show it on."""
        from rich.console import Console

        console = Console(stderr=True)
        if self._verbose or not console.is_terminal:
            yield self
            return
        with console.status("restoring") as self._status:
            yield self
        self._status = None
