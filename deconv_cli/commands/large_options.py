"""Options on inputs that are larger than memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from deconv_cli.errors import UsageError
from deconv_cli.schedulers.scheduler import JobShare

LARGE = "Large inputs"


@dataclass(frozen=True)
class LargeOptions:
    """How an input is cut that does not fit the memory, or that the user wants in blocks."""

    block_size: Annotated[
        str | None,
        typer.Option(
            "--block-size",
            metavar="N|D,H,W",
            help="Restore the input in blocks of N pixels along each axis of space. Default: the largest blocks that "
            "--max-memory allows, if the whole does not fit it.",
            show_default=False,
            rich_help_panel=LARGE,
        ),
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print how the input would be cut, with memory, halo, the expected error at the seams and the time; "
            "write nothing.",
            rich_help_panel=LARGE,
        ),
    ] = False

    block_range: Annotated[
        str | None,
        typer.Option(
            "--block-range",
            metavar="i/N",
            help="Restore the share of job i of N. Jobs may run at any time on any machine that sees the files; the "
            "last job to end completes the result.",
            show_default=False,
            rich_help_panel=LARGE,
        ),
    ] = None

    @property
    def is_cut_anyway(self) -> bool:
        """Whether an option was typed that has no use without blocks."""
        return self.block_size is not None or self.dry_run or self.block_range is not None

    def check(self, *, is_possible: bool, is_one: bool) -> None:
        """Refuse by `UsageError` options that need a given kernel or a single input, or a share that is none."""
        if self.is_cut_anyway and not is_possible:
            raise UsageError(
                "--block-size, --block-range and --dry-run are for inputs that are restored with a given kernel, "
                "not with --kernel estimate, --factor, --layers or --tap; leave them out, or give the kernel that "
                "deconv kernel estimate finds."
            )
        if self.block_range is not None:
            JobShare.parse(self.block_range)
        if not is_one and (self.dry_run or self.block_range is not None):
            raise UsageError(
                f"{'--dry-run' if self.dry_run else '--block-range'} belongs to one input without a manifest; give its "
                "file alone."
            )
