"""Streams, sentences, tables and pictures: the answer goes to stdout, everything else to stderr."""

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
    from rich.text import Text
    from torch import Tensor


_UNWRAPPED = 100_000
"""Columns of a table in a pipe or a file."""
LONGEST_NAME = 48
"""Letters of the name of a file that a table on a screen shows."""
HALF_BLOCK = "▀"
SHADES = " ░▒▓█"
"""For terminals without colors."""
MAX_COLUMNS = 160


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


def show_picture(image: Tensor, *, is_color: bool, n_axes: int = 2) -> None:
    """Draw an image on the terminal behind stderr, no larger than that; without a terminal, print a note.

    Args:
        image: shape `(C, *size)` or `(B, C, *size)`; draws the first image, the middle plane of a stack, and a signal
            as a line of shades.
        is_color: three channels are red, green and blue; else the first channel is drawn in gray.
        n_axes: axes of space.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        print_note("nothing was drawn: --show needs a terminal, and stderr is not a terminal")
        return
    from deconv_cli.report.page_pictures import display_range

    first = image.detach().cpu()
    first = first if first.ndim == n_axes + 1 else first[0]
    if n_axes != 2:
        first = first[:, first.shape[1] // 2] if n_axes == 3 else first[:, None]
    shown = first if is_color and first.shape[0] == 3 else first[:1]
    low, high = display_range(shown)
    lines, rows, columns = _lines(console, (shown.double() - low) / (high - low))
    for line in lines:
        console.print(line, no_wrap=True, crop=True)
    what = "" if shown.shape[0] == first.shape[0] else f"channel 1 of {first.shape[0]}, "
    print_note(
        f"drawn: {what}{first.shape[-2]}×{first.shape[-1]} pixels as {rows}×{columns}; "
        f"black is {low:.4g}, white is {high:.4g}"
    )


def _lines(console: Console, levels: Tensor) -> tuple[list[Text], int, int]:
    """Draw levels from 0 to 1, shape `(1 or 3, H, W)`; returns the lines, and the rows and columns of pixels."""
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text
    from torch.nn import functional

    height, width = levels.shape[-2:]
    # A letter is about twice as high as it is wide: with colors it holds two square pixels.
    has_colors = console.color_system is not None and not console.no_color
    rows_a_line = 2 if has_colors else 1
    scale = min(min(console.width, MAX_COLUMNS) / width, max(console.height - 4, 8) * 2 / height, 1.0)
    columns = max(int(width * scale), 1)
    rows = max(round(height * scale * rows_a_line / 2), 1)
    rows += rows % rows_a_line
    reduced = functional.adaptive_avg_pool2d(levels.nan_to_num()[None], (rows, columns))[0].clamp(0, 1)
    if not has_colors:
        shades = (reduced.mean(0) * (len(SHADES) - 1)).round().int().tolist()
        return [Text("".join(SHADES[level] for level in line)) for line in shades], rows, columns
    pixels = (reduced * 255).round().int().expand(3, -1, -1).permute(1, 2, 0).tolist()
    lines = []
    for above, below in zip(pixels[::2], pixels[1::2], strict=True):
        styles = (
            Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower))
            for upper, lower in zip(above, below, strict=True)
        )
        lines.append(Text.assemble(*((HALF_BLOCK, style) for style in styles)))
    return lines, rows, columns
