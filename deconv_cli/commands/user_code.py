"""Code of the user's: the options that name a model's class, and running it apart from the answer on stdout."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deconv_cli.commands.option_groups import optional
from deconv_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from deconv_cli.models.model_files import ModelFile

MODEL_FILES = "Model files"
_WARNING_LENGTH = 240


@dataclass(frozen=True)
class ModelOptions:
    """How to open a model file."""

    model: str | None = optional(
        "--model CODE",
        "The model's class, for a file of weights alone: file.py:Name or package.module:Name. This code is run; no "
        "code in the file MODEL is.",
        MODEL_FILES,
    )
    init: str | None = optional(
        "--init JSON", 'Arguments of the class that --model names: {"hidden": 64}, or a list.', MODEL_FILES
    )

    def arguments(self) -> dict[str, Any] | list[Any] | None:
        """Read the arguments of the class: a JSON object or a list; another text, or no class, is a `UsageError`."""
        if self.init is None:
            return None
        if self.model is None:
            raise UsageError(
                "--init gives the arguments of --model, which is missing; name the class with --model file.py:Class."
            )
        try:
            found = json.loads(self.init)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"--init must be JSON such as {{\"hidden\": 64}}, but is '{self.init[:80]}'.") from error
        if not isinstance(found, dict | list):
            raise UsageError(f"--init must be a JSON object or a list, but is '{self.init[:80]}'.")
        return found


def open_module(path: Path, options: ModelOptions) -> tuple[ModelFile, nn.Module | None]:
    """Read a model file, and build the model if its class is named.

    Raises:
        UsageError: no such file or name, or arguments without a class.
        InputRefusedError: a file that is unsafe, damaged or does not fit.
    """
    from deconv_cli.saved_files import open_model

    with running_user_code(is_silent=True):
        return open_model(path, model=options.model, init=options.arguments())


def name_or_code(text: str, names: Iterable[str], option: str) -> Any:  # noqa: ANN401
    """Return a text that names one of the library's functions, or the function that `file.py:function` names.

    A text without a colon is returned too; the library refuses it if it is not a name.

    Raises:
        UsageError: there is no such file or function; the message calls it `option`.
        InputRefusedError: importing the file takes too much memory.
    """
    from deconv_cli.models.model_files import load_named

    if ":" not in text or text.partition(":")[0] in names:
        return text
    return load_named(text, option).value


@contextlib.contextmanager
def running_user_code(*, is_silent: bool) -> Iterator[tuple[Callable[[str], None], list[warnings.WarningMessage]]]:
    """Send what the code prints to stderr, and collect the warnings.

    Args:
        is_silent: show no progress; without it, progress is shown on a terminal only.

    Yields:
        A function that shows a sentence of progress, and the list of warnings.
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
    """Send to stderr what other programs print, and what is written past Python."""
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def describe_warnings(caught: list[warnings.WarningMessage]) -> list[str]:
    """Write each different warning as a sentence."""
    lines = [str(warning.message).strip().partition("\n")[0].rstrip(".") for warning in caught]
    return [f"warning from the code: {line[:_WARNING_LENGTH]}" for line in dict.fromkeys(filter(None, lines))]
