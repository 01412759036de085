"""The progress of a long run: its step and iteration, or how many pieces are done, and the time left."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import typer

from deconv_cli.vocabulary import counted
from deconv_cli.workflows.progress_listener import ProgressListener

if TYPE_CHECKING:
    from rich.status import Status

LOG_INTERVAL_S = 60.0
"""Seconds between lines in a log, without a terminal."""
_REMEMBERED_PIECES = 64
"""Pieces that the rate is computed from: earlier ones may have been larger."""


class _ProgressLine:
    """A line on stderr: it moves on a terminal, and is printed once a minute in a log."""

    def __init__(self, *, is_silent: bool, clock: Callable[[], float]) -> None:
        self._is_silent, self._clock = is_silent, clock
        self._last_line = clock()
        self._status: Status | None = None

    @contextmanager
    def _moving(self, first: str) -> Iterator[Self]:
        """Show the line while the block runs, on a terminal."""
        if self._is_silent:
            yield self
            return
        from rich.console import Console

        console = Console(stderr=True)
        if not console.is_terminal:
            yield self
            return
        try:
            with console.status(first) as self._status:
                yield self
        finally:
            self._status = None

    def _update(self, line: str, logged: str) -> None:
        """Show a line on the terminal, or print another one in a log if it is time."""
        if self._status is not None:
            self._status.update(line)
        elif not self._is_silent and self._clock() - self._last_line >= LOG_INTERVAL_S:
            self._last_line = self._clock()
            typer.echo(logged, err=True)


class WorkProgress(_ProgressLine, ProgressListener):
    """Shows the step and the iteration of one restoration, which `started` with it.

    Args:
        label: stands before every line, as `file 2 of 7`.
        verbose: print a line for every step and iteration instead.
        is_silent: show nothing.
        show: gets the line if something else uses the terminal; then `shown` does nothing.
        ends: called at each step and iteration; if it returns true, the work ends by `KeyboardInterrupt`. Python
            interrupts only the first thread.
        clock: seconds.
    """

    def __init__(
        self,
        label: str = "",
        *,
        verbose: bool = False,
        is_silent: bool = False,
        show: Callable[[str], None] | None = None,
        ends: Callable[[], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(is_silent=is_silent, clock=clock)
        self.started = time.perf_counter()
        self._label = f"{label}: " if label else ""
        self._verbose, self._show, self._ends = verbose, show, ends
        self._step = ""
        self._goal: float | None = None
        self._most = 0

    def begin(self, step: str, *, goal: float | None = None, limit: int = 0) -> None:
        """Begin a step.

        Args:
            step: its name.
            goal: the certificate at which its iteration ends.
            limit: the largest number of iterations.
        """
        self._step, self._goal, self._most = step, goal, limit
        self._print(step)

    def __call__(self, iteration: int, certificate: float) -> None:
        """Show an iteration."""
        is_counted = self._goal is None and not self._most  # a fixed number of steps claims no minimum
        line = f"step {iteration}: change" if is_counted else f"iteration {iteration}: certificate"
        line = f"{line} {certificate:.2e}" + ("" if self._goal is None else f", goal {self._goal:.0e}")
        self._print(line)

    @contextmanager
    def shown(self) -> Iterator[WorkProgress]:
        """Show the line while the block runs, on a terminal."""
        if self._verbose:
            yield self
            return
        with self._moving(f"{self._label}reading"):
            yield self

    def _print(self, line: str) -> None:
        if self._ends is not None and self._ends():
            raise KeyboardInterrupt
        if self._verbose and not self._is_silent:
            typer.echo(self._label + line, err=True)
            return
        line = line if line == self._step else f"{self._step}: {line}"
        if self._show is not None and not self._is_silent:
            self._show(line)
        else:
            self._update(self._label + line, self._label + line)


def format_duration(seconds: float) -> str:
    """Round a time to seconds, minutes or hours."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class PieceProgress(_ProgressLine):
    """Shows how many pieces are done, files or blocks by their `name`."""

    def __init__(
        self, n_pieces: int, name: str = "file", *, is_silent: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(is_silent=is_silent, clock=clock)
        self._n_pieces, self._name = n_pieces, name
        self._n_done, self._is_reached = 0, False
        self._step = ""
        self._ends: deque[float] = deque([clock()], maxlen=_REMEMBERED_PIECES + 1)

    def advance(self, n_pieces: int = 1) -> None:
        """Count pieces that are done."""
        self._n_done += n_pieces
        self._ends.extend([self._clock()] * n_pieces)
        self._step = ""
        self._show_line()

    def reach(self, n_done: int, n_pieces: int) -> None:
        """Count the pieces that are done; the first call counts those of an earlier run, which have no rate."""
        if self._is_reached:
            self.advance(n_done - self._n_done)
            return
        self._is_reached = True
        self._n_done, self._n_pieces = n_done, n_pieces
        self._ends.clear()
        self._ends.append(self._clock())
        self._show_line()

    def tell(self, step: str) -> None:
        """Show on a terminal what is being done with the current piece."""
        self._step = step
        self._show_line()

    def line(self) -> str:
        """Describe the progress in a line."""
        line = f"{self._n_done} of {counted(self._n_pieces, self._name)}"
        n_pieces, elapsed = len(self._ends) - 1, self._ends[-1] - self._ends[0]
        if n_pieces < 1 or elapsed <= 0:
            return line
        return f"{line}, about {format_duration((self._n_pieces - self._n_done) * elapsed / n_pieces)} left"

    @contextmanager
    def shown(self) -> Iterator[PieceProgress]:
        """Show the line while the block runs, on a terminal."""
        with self._moving(self.line()):
            yield self

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Remove the line while the block prints. Otherwise Rich would send stdout to stderr, where the line is."""
        if self._status is None:
            yield
            return
        self._status.stop()
        try:
            yield
            sys.stdout.flush()
        finally:
            self._status.start()

    def _show_line(self) -> None:
        line = self.line()
        self._update(f"{line}: {self._step}" if self._step else line, line)
