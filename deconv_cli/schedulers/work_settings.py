"""Who does the pieces of a run: what a person may say of it."""

from __future__ import annotations

from dataclasses import dataclass

from deconv_cli.errors import UsageError


@dataclass(frozen=True)
class WorkSettings:
    """Processes of this machine, a cluster of its own, or one that is running; by default this process alone.

    Attributes:
        jobs: processes of this machine; one is this process.
        cluster: a cluster that lasts as long as the run, as `local:4`.
        scheduler: address of a running cluster, as `tcp://host:8786`, or the file that its scheduler wrote it to.
        threads: of this process, each of which does a piece by itself; one is this process as it is.
        device: type of the device of the arithmetic; each process of this machine has a GPU to itself.

    Raises:
        UsageError: more than one of the first four is given.
    """

    jobs: int | None = None
    cluster: str | None = None
    scheduler: str | None = None
    threads: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        given = [name for name in ("jobs", "cluster", "scheduler", "threads") if getattr(self, name) is not None]
        if len(given) > 1:
            named = " and ".join(f"{name}={getattr(self, name)}" for name in given)
            raise UsageError(f"{named} each say who does the work; give one of them.")
        for name in ("jobs", "threads"):
            n = getattr(self, name)
            if n is not None and n < 1:
                raise UsageError(f"{name} must be a positive whole number, but is {n}.")
