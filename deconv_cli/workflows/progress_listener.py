"""Following a reconstruction while it runs."""

from __future__ import annotations

from collections.abc import Callable


class ProgressListener:
    """Is called as a reconstruction goes on; does nothing by itself, and is there to be derived from."""

    def begin(self, step: str, *, goal: float | None = None, limit: int = 0) -> None:
        """Take note of the step that begins.

        Args:
            step: what it is.
            goal: the certificate at which its iteration ends, if there is one.
            limit: after how many iterations it ends at the latest; 0 if it does not iterate.
        """

    def __call__(self, iteration: int, certificate: float) -> None:
        """Take note of an iteration."""


class StepOf(ProgressListener):
    """Says of each step what it is a part of.

    Args:
        whole: what that is.
        listener: is notified.
    """

    def __init__(self, whole: str, listener: ProgressListener) -> None:
        self._whole, self._listener = whole, listener

    def begin(self, step: str, *, goal: float | None = None, limit: int = 0) -> None:
        """Pass the step on, with what it is a part of."""
        self._listener.begin(f"{self._whole}: {step}", goal=goal, limit=limit)

    def __call__(self, iteration: int, certificate: float) -> None:
        """Pass the iteration on."""
        self._listener(iteration, certificate)


class _Forwarding(ProgressListener):
    def __init__(self, call: Callable[[int, float], None]) -> None:
        self._call = call

    def __call__(self, iteration: int, certificate: float) -> None:
        self._call(iteration, certificate)


def as_listener(progress: Callable[[int, float], None] | None) -> ProgressListener:
    """Make a listener of any function that is called with an iteration and its certificate, or of none."""
    if isinstance(progress, ProgressListener):
        return progress
    return ProgressListener() if progress is None else _Forwarding(progress)
