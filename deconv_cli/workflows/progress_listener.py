"""Following a reconstruction while it runs."""

from __future__ import annotations

from collections.abc import Callable


class ProgressListener:
    """Follows a reconstruction; does nothing itself, and is a base to derive from."""

    def begin(self, step: str, *, goal: float | None = None, limit: int = 0) -> None:
        """Take note of the step that begins.

        Args:
            step: its name.
            goal: the certificate at which its iteration ends, if it iterates to one.
            limit: largest number of iterations; 0 if it does not iterate.
        """

    def __call__(self, iteration: int, certificate: float) -> None:
        """Take note of an iteration."""


class StepOf(ProgressListener):
    """Names the whole that each step is a part of.

    Args:
        whole: its name.
        listener: follows the steps.
    """

    def __init__(self, whole: str, listener: ProgressListener) -> None:
        self._whole, self._listener = whole, listener

    def begin(self, step: str, *, goal: float | None = None, limit: int = 0) -> None:
        """Pass the step on, with the name of the whole."""
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
    """Make a listener of a function of an iteration and its certificate, or of nothing."""
    if isinstance(progress, ProgressListener):
        return progress
    return ProgressListener() if progress is None else _Forwarding(progress)
