"""What every scheduler does: call a task with each of many numbers, in any order, anywhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True)
class Finished(Generic[Result]):
    """One piece of work that is done.

    Attributes:
        number: which one.
        result: what the task gave; `None` where it failed.
        error: what it raised in its last trial; `None` where it did not fail.
    """

    number: int
    result: Result | None = None
    error: Exception | None = None


class Scheduler(ABC):
    """Calls a task with one number after another; a context manager that ends its workers.

    A task can be sent to another process, takes its number, and may be called again with it when a worker dies: what
    it writes must be the same each time. Its result is small: samples go to files.
    """

    n_workers: int
    """Tasks that run at once."""
    address: str | None = None
    """Where a person can watch the workers."""

    @abstractmethod
    def run(self, task: Callable[[int], Result], numbers: Iterable[int]) -> Iterator[Finished[Result]]:
        """Give each piece of work as it is done; few more than there are workers are under way at any time.

        An error that a task raises is given with its number, and the others go on.
        """

    def close(self) -> None:  # noqa: B027
        """End the workers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
