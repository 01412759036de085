"""What people see: everything goes to stderr, so that stdout carries the answer alone."""

from __future__ import annotations

import json
import os
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
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    # A file name may hold bytes that are no UTF-8; JSON has escapes for them.
    typer.echo(text.encode("utf-8", "backslashreplace").decode("utf-8"))


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
