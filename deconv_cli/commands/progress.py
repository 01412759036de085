"""The progress of a long restoration: its step, its iteration, and the time left."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from deconv_cli.workflows.progress_listener import ProgressListener

if TYPE_CHECKING:
    from rich.status import Status

LOG_INTERVAL_S = 60.0
"""Seconds between lines in a log, without a terminal."""
REMEMBERED = 12
"""Latest iterations from which the speed is measured."""


class WorkProgress(ProgressListener):
    """Shows the step on stderr: as a moving line on a terminal, or as a line a minute in a log.

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
        self._label = f"{label}: " if label else ""
        self._verbose = verbose
        self._is_silent = is_silent
        self._show = show
        self._ends = ends
        self._clock = clock
        self._status: Status | None = None
        self._last_line = clock()
        self._step = ""
        self._goal: float | None = None
        self._most = 0
        self._seen: deque[tuple[int, float, float]] = deque(maxlen=REMEMBERED)

    def begin(self, step: str, *, goal: float | None = None, limit: int = 0) -> None:
        """Begin a step.

        Args:
            step: its name.
            goal: the certificate at which its iteration ends.
            limit: the largest number of iterations.
        """
        self._step, self._goal, self._most = step, goal, limit
        self._seen.clear()
        self._print(step)

    def __call__(self, iteration: int, certificate: float) -> None:
        """Show an iteration."""
        if self._seen and iteration <= self._seen[-1][0]:
            self._seen.clear()  # another iteration has begun
        self._seen.append((iteration, certificate, self._clock()))
        is_counted = self._goal is None and not self._most  # a fixed number of steps claims no minimum
        line = f"step {iteration}: change" if is_counted else f"iteration {iteration}: certificate"
        line = f"{line} {certificate:.2e}" + ("" if self._goal is None else f", goal {self._goal:.0e}")
        left = self.seconds_left()
        if left is not None:
            line += f", about {format_duration(left)} left"
        self._print(line)

    def seconds_left(self) -> float | None:
        """Predict the end from the fall of the certificate and from the largest number of iterations.

        Returns:
            `None` before the third iteration, or if neither predicts an end.
        """
        if len(self._seen) < 3:
            return None
        (first, before, began), (last, now, at) = self._seen[0], self._seen[-1]
        pace = (at - began) / (last - first)
        ends = [(self._most - last) * pace] if self._most else []
        if self._goal is not None and 0 < now < before:
            ends.append(math.log(now / self._goal) / math.log(before / now) * (at - began))
        return max(0.0, min(ends)) if ends else None

    @contextmanager
    def shown(self) -> Iterator[WorkProgress]:
        """Show the line while the block runs, on a terminal."""
        from rich.console import Console

        console = Console(stderr=True)
        if self._verbose or self._is_silent or not console.is_terminal:
            yield self
            return
        with console.status(f"{self._label}reading") as self._status:
            yield self
        self._status = None

    def _print(self, line: str) -> None:
        if self._ends is not None and self._ends():
            raise KeyboardInterrupt
        if self._is_silent:
            return
        if self._verbose:
            typer.echo(self._label + line, err=True)
            return
        line = line if line == self._step else f"{self._step}: {line}"
        if self._show is not None:
            self._show(line)
        elif self._status is not None:
            self._status.update(self._label + line)
        elif self._clock() - self._last_line >= LOG_INTERVAL_S:
            self._last_line = self._clock()
            typer.echo(self._label + line, err=True)


def format_duration(seconds: float) -> str:
    """Round a time to seconds, minutes or hours."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
