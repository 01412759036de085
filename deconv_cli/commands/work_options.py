"""Options on who does the work, for files and for blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from deconv_cli.commands.console import print_note

if TYPE_CHECKING:
    from deconv_cli.schedulers.scheduler import Scheduler

WORKERS = "Workers"


@dataclass(frozen=True)
class WorkOptions:
    """Processes of this machine, or a cluster."""

    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            metavar="N",
            help="Work in N processes, which share the cores of this machine, its GPUs, and --max-memory. Default: in "
            "threads of this process.",
            show_default=False,
            min=1,
            rich_help_panel=WORKERS,
        ),
    ] = None
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="local:N",
            help="Work in N processes of this machine that Dask starts for this run.",
            show_default=False,
            rich_help_panel=WORKERS,
        ),
    ] = None
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler",
            metavar="ADDRESS|FILE",
            help="Work on a running Dask cluster: the address of its scheduler, such as tcp://host:8786, or the "
            "scheduler's file. --max-memory is for each worker.",
            show_default=False,
            rich_help_panel=WORKERS,
        ),
    ] = None

    @property
    def are_given(self) -> bool:
        """Whether anybody but this process is asked for."""
        return self != WorkOptions()

    def start(self, device: str, *, threads: int | None = None) -> Scheduler:
        """Start the workers.

        Args:
            device: type of the device of the arithmetic.
            threads: of this process that work by themselves, where nobody else is asked for.

        Raises:
            UsageError: options that contradict one another or what is there, or a package is missing.
            WorkerError: there is no cluster at the address.
        """
        from deconv_cli.schedulers.scheduler import WorkSettings, start_scheduler

        threads = None if self.are_given else threads
        return start_scheduler(WorkSettings(self.jobs, self.cluster, self.scheduler, threads, device))


def print_workers(scheduler: Scheduler) -> None:
    """Say where the workers can be watched, and that there are none yet."""
    if scheduler.address is not None:
        print_note(f"the workers can be watched at {scheduler.address}")
    if not scheduler.n_workers:
        print_note("the cluster has no workers yet; the work begins with the first one")
