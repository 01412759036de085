"""The progress of a run over many files or blocks: how many are done, how fast, and how long the rest will take."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from deconv_cli.commands.progress import LOG_INTERVAL_S, format_duration
from deconv_cli.vocabulary import counted

if TYPE_CHECKING:
    from rich.status import Status

_REMEMBERED = 64
"""Pieces that the rate is computed from: earlier ones may have been larger."""
_FIRST = 8
"""With more pieces than this, the time of the first one does not count: workers may have had to start."""


class PieceProgress:
    """Shows on stderr a moving line on a terminal, or a line a minute in a log.

    Args:
        n_pieces: number of pieces.
        name: of one piece.
        is_silent: whether nothing is shown.
        clock: in seconds.
    """

    def __init__(
        self,
        n_pieces: int,
        name: str = "file",
        *,
        is_silent: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._n_pieces, self._name, self._is_silent, self._clock = n_pieces, name, is_silent, clock
        self._n_done, self._is_reached = 0, False
        self._step = ""
        self._ends: deque[float] = deque([clock()], maxlen=_REMEMBERED + 1)
        self._last_line = clock()
        self._status: Status | None = None

    def advance(self, n_pieces: int = 1) -> None:
        """Count pieces that are done."""
        self._n_done += n_pieces
        self._ends.extend([self._clock()] * n_pieces)
        self._step = ""
        self._update()

    def reach(self, n_done: int, n_pieces: int) -> None:
        """Count the pieces that are done; the first call counts those of an earlier run, which have no rate."""
        if self._is_reached:
            self.advance(n_done - self._n_done)
            return
        self._is_reached = True
        self._n_done, self._n_pieces = n_done, n_pieces
        self._ends.clear()
        self._ends.append(self._clock())
        self._update()

    def tell(self, step: str) -> None:
        """Show on a terminal what is being done with the current piece."""
        self._step = step
        self._update()

    def line(self) -> str:
        """Describe the progress in a line."""
        line = f"{self._n_done} of {counted(self._n_pieces, self._name)}"
        n_pieces, start = len(self._ends) - 1, self._ends[0]
        if n_pieces > _FIRST:
            n_pieces, start = n_pieces - 1, self._ends[1]
        elapsed = self._ends[-1] - start
        if n_pieces < 1 or elapsed <= 0:
            return line
        rate = n_pieces / elapsed
        left = (self._n_pieces - self._n_done) / rate
        return f"{line}, {_format_rate(rate, self._name)}, about {format_duration(left)} left"

    @contextmanager
    def shown(self) -> Iterator[PieceProgress]:
        """Show the line while the block runs."""
        from rich.console import Console

        console = Console(stderr=True)
        if self._is_silent or not console.is_terminal:
            yield self
            return
        self._status = console.status(self.line())
        try:
            with self._status:
                yield self
        finally:
            self._status = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Remove the line while the block prints: Rich would send stdout to where the line is."""
        if self._status is None:
            yield
            return
        self._status.stop()
        try:
            yield
            sys.stdout.flush()
        finally:
            self._status.start()

    def _update(self) -> None:
        if self._status is not None:
            self._status.update(f"{self.line()}: {self._step}" if self._step else self.line())
        elif not self._is_silent and self._clock() - self._last_line >= LOG_INTERVAL_S:
            self._last_line = self._clock()
            typer.echo(self.line(), err=True)


def _format_rate(per_second: float, name: str) -> str:
    for unit, seconds in (("second", 1), ("minute", 60)):
        if per_second * seconds >= 1:
            return f"{counted(f'{per_second * seconds:.3g}', name)} a {unit}"
    return f"{counted(f'{per_second * 3600:.3g}', name)} an hour"
