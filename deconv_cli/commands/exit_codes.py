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
    """Finished, but not to be trusted as it is: not converged, doubted, or a batch done in part."""
    FAULT_FOUND = 4
    INPUT_REFUSED = 5
    INTERRUPTED = 130


def exit_code_for(error: DeconvError) -> ExitCode:
    """Return the exit code of an error."""
    if isinstance(error, UsageError):
        return ExitCode.USAGE
    if isinstance(error, InputRefusedError):
        return ExitCode.INPUT_REFUSED
    if isinstance(error, GradientFaultError):
        return ExitCode.FAULT_FOUND
    if isinstance(error, UntrustworthyResultError):
        return ExitCode.UNTRUSTWORTHY
    return ExitCode.FAILURE
