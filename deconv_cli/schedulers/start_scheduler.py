"""From what a person says of the workers to the scheduler that has them."""

from __future__ import annotations

from deconv_cli.errors import UsageError
from deconv_cli.parts import SCHEDULERS
from deconv_cli.schedulers.scheduler import Scheduler
from deconv_cli.schedulers.work_settings import WorkSettings


def start_scheduler(settings: WorkSettings) -> Scheduler:
    """Start the first registered scheduler that covers the settings.

    Raises:
        UsageError: none does, or a package is missing.
        WorkerError: there is no cluster where the settings say.
    """
    for name in SCHEDULERS:
        kind: type[Scheduler] = SCHEDULERS[name]
        if kind.covers(settings):
            return kind.open(settings)
    raise UsageError(f"cluster must be local:N with N processes of this machine, but is '{settings.cluster}'.")
