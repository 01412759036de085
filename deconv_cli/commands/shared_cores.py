"""The cores that torch computes on, while other threads of this process compute too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")

LONG = 4
"""Arithmetic that takes so many times as long as what writers do has all cores: they are idle most of the time."""


class SharedCores:
    """Leaves the writers a core each, as long as they have about as much to do as the arithmetic.

    torch cuts an operation up among its threads, which wait for one another in a loop. One that has to share its core
    with a writer keeps all others waiting: of pictures of 512 × 512 on two cores that took up to ten times as long.

    Args:
        n_writers: threads beside the one that computes.
    """

    def __init__(self, n_writers: int) -> None:
        import torch

        self._n_all, self._n_writers = torch.get_num_threads(), n_writers
        self._computing_s = self._writing_s = 0.0

    @staticmethod
    def take_one() -> None:
        """Make torch compute on one core in this thread."""
        import torch

        torch.set_num_threads(1)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Compute on the cores that are left."""
        import torch

        is_alone = self._computing_s >= LONG * self._writing_s
        torch.set_num_threads(self._n_all if is_alone else max(1, self._n_all - self._n_writers))
        started = time.perf_counter()
        yield
        self._computing_s = time.perf_counter() - started

    def timed(self, write: Callable[[], Result]) -> Result:
        """Call what writes, and take down how long it had a core, which is not how long it waited for the disk."""
        started = time.thread_time()
        result = write()
        self._writing_s = time.thread_time() - started
        return result

    def give_back(self) -> None:
        """Compute on all cores again."""
        import torch

        torch.set_num_threads(self._n_all)
