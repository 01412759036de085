"""Following a reconstruction while it runs."""

from __future__ import annotations

from collections.abc import Callable


class ProgressListener:
    """Follows a reconstruction, and is a base to derive from; by itself it passes iterations on, if given a function.

    Args:
        progress: called with the number of each iteration and its certificate.
    """

    _progress: Callable[[int, float], None] | None = None

    def __init__(self, progress: Callable[[int, float], None] | None = None) -> None:
        self._progress = progress

    def begin(self, step: str, *, goal: float | None = None, limit: int = 0) -> None:
        """Take note of the step that begins.

        Args:
            step: its name.
            goal: the certificate at which its iteration ends, if it iterates to one.
            limit: largest number of iterations; 0 if it does not iterate.
        """

    def __call__(self, iteration: int, certificate: float) -> None:
        """Take note of an iteration."""
        if self._progress is not None:
            self._progress(iteration, certificate)


class StepOf(ProgressListener):
    """Names the whole that each step is a part of to the listener that follows the steps."""

    def __init__(self, whole: str, listener: ProgressListener) -> None:
        super().__init__(listener)
        self._whole, self._listener = whole, listener

    def begin(self, step: str, *, goal: float | None = None, limit: int = 0) -> None:
        """Pass the step on, with the name of the whole."""
        self._listener.begin(f"{self._whole}: {step}", goal=goal, limit=limit)


def as_listener(progress: Callable[[int, float], None] | None) -> ProgressListener:
    """Make a listener of a function of an iteration and its certificate, or of nothing."""
    return progress if isinstance(progress, ProgressListener) else ProgressListener(progress)
