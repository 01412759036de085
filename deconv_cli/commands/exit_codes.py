"""The exit codes of the process."""

from __future__ import annotations

from enum import IntEnum, unique

from deconv_cli.errors import DeconvError, GradientFaultError, InputRefusedError, UntrustworthyResultError, UsageError


@unique
class ExitCode(IntEnum):
    """The exit codes of every command."""

    SUCCESS = 0
    FAILURE = 1
    USAGE = 2
    UNTRUSTWORTHY = 3
    """Finished, but not to be trusted as it is: not converged, doubted, no blur found, or a batch done in part.

    Commands that wrote a result end with it themselves; errors get it from `exit_code_for`.
    """
    FAULT_FOUND = 4
    INPUT_REFUSED = 5
    INTERRUPTED = 130


def exit_code_for(error: DeconvError) -> ExitCode:
    """Return the exit code of an error."""
    codes = {
        UsageError: ExitCode.USAGE,
        InputRefusedError: ExitCode.INPUT_REFUSED,
        GradientFaultError: ExitCode.FAULT_FOUND,
        UntrustworthyResultError: ExitCode.UNTRUSTWORTHY,
    }
    return next((code for kind, code in codes.items() if isinstance(error, kind)), ExitCode.FAILURE)
