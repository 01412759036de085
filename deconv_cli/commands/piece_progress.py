"""How far a run over many pieces is, files or blocks: how many are done, how fast, and when the rest will be."""

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
"""Pieces from which the rate is computed: those of long ago may have been larger."""
_FIRST = 8
"""Once there are more pieces than this, the wait for the first one does not count: workers may have had to start."""


class PieceProgress:
    """Shows on stderr a moving line on a terminal, or a line a minute in a log.

    Args:
        n_pieces: how many there are.
        name: what one is.
        is_silent: show nothing at all.
        clock: seconds.
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
        self._n_done = 0
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

    def begin_at(self, n_done: int, n_pieces: int) -> None:
        """Count pieces that an earlier run did, of all: they say nothing of how fast this one is."""
        self._n_done, self._n_pieces = n_done, n_pieces
        self._ends.clear()
        self._ends.append(self._clock())
        self._update()

    def tell(self, step: str) -> None:
        """Say what is being done with the piece at hand; for a terminal."""
        self._step = step
        self._update()

    def line(self) -> str:
        """Say how many are done, how fast, and how long the rest will take."""
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
        """Take the line away while the block prints: Rich would send stdout to where the line is."""
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
