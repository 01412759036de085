"""Running code of the user's: what it prints and what it warns of stay out of the answer."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator

from deconv_cli.errors import UsageError

_WARNING_LENGTH = 240


@contextlib.contextmanager
def running_user_code(*, is_silent: bool) -> Iterator[tuple[Callable[[str], None], list[warnings.WarningMessage]]]:
    """Send to stderr what the code prints, and gather what it and torch warn of.

    Args:
        is_silent: show no progress; it is shown on a terminal alone.

    Yields:
        What shows a sentence of progress, and the list of warnings.
    """
    from rich.console import Console

    console = Console(stderr=True)
    with (
        contextlib.redirect_stdout(sys.stderr),
        _descriptor_to_stderr(),
        warnings.catch_warnings(record=True) as caught,
        contextlib.ExitStack() as shown,
    ):
        warnings.simplefilter("always")
        if is_silent or not console.is_terminal:
            yield lambda _sentence: None, caught
        else:
            yield shown.enter_context(console.status("starting")).update, caught


@contextlib.contextmanager
def _descriptor_to_stderr() -> Iterator[None]:
    """Send to stderr what programs that the code starts print, and what it writes past Python."""
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def describe_warnings(caught: list[warnings.WarningMessage]) -> list[str]:
    """Write each warning once, a sentence each."""
    lines = [str(warning.message).strip().partition("\n")[0].rstrip(".") for warning in caught]
    return [f"a warning on the way: {line[:_WARNING_LENGTH]}" for line in dict.fromkeys(filter(None, lines))]


@contextlib.contextmanager
def naming_options(options: str) -> Iterator[None]:
    """Add to an error of the library the options by which its advice is followed."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{str(error).rstrip('.')}: {options}.") from error
