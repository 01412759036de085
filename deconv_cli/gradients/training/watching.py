"""`watch_gradients`: checks the training that runs inside a `with` block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from deconv_cli.gradients.checker import DEFAULT_BUDGET, check_subject
from deconv_cli.gradients.gradient_report import GradientReport
from deconv_cli.gradients.training.training_report import report_training
from deconv_cli.gradients.training.training_watch import TrainingWatch


class WatchedTraining:
    """Holds the `report` once the block is over; it prints as text, and as a table in a notebook."""

    def __init__(self) -> None:
        self.report: GradientReport | None = None

    def __str__(self) -> str:
        """Write the report."""
        return "nothing was checked yet" if self.report is None else str(self.report)

    def _repr_html_(self) -> str:
        return str(self) if self.report is None else self.report._repr_html_()


@contextmanager
def watch_gradients(*, step: int = 1, budget: float = DEFAULT_BUDGET) -> Iterator[WatchedTraining]:
    """Check the gradients of the training that runs inside of the block, and what its optimizers do with them.

    Passes are checked when `loss.backward()` is called, the first of each line that calls it; the code goes on
    afterwards as if nothing had been::

        with deconv_cli.watch_gradients() as watched:
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
        print(watched.report)

    Args:
        step: which backward pass is the first to be checked, counted from 1.
        budget: seconds for finite differences of the first pass.

    Raises:
        UsageError: the pass never comes, or cannot be run again.
    """
    watched = WatchedTraining()
    watch = TrainingWatch(lambda subject, seconds: check_subject(subject, budget=seconds), step=step, budget=budget)
    with watch:
        yield watched
    watched.report = report_training(watch)
