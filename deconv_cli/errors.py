"""Everything that can go wrong, as one tree, and warnings as errors in one thread.

The message is complete: no caller adds to it, and the command line prints it as it stands.
"""

from __future__ import annotations

import importlib
import os
import pathlib
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal


class DeconvError(Exception):
    """Base of every error that this package raises: one sentence on what was expected, what came, what to do."""


class UsageError(DeconvError, ValueError):
    """The arguments ask for something impossible."""


class FileAccessError(DeconvError, OSError):
    """A file cannot be read or written: no permission, or a full disk."""


class InputRefusedError(DeconvError, ValueError):
    """The content of an input cannot be processed."""


class MalformedInputError(InputRefusedError):
    """An input is truncated, empty, not finite, or not the format it claims to be."""


class ShapeError(InputRefusedError):
    """A kernel and an image do not fit each other; the message names both shapes."""


class TooLargeError(InputRefusedError):
    """An input does not fit the memory, or its header promises an implausible size."""


def as_too_large(error: BaseException) -> TooLargeError | None:
    """Recognize a lack of memory, which torch reports only by its message."""
    is_of_torch = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    if not is_of_torch and not isinstance(error, MemoryError):
        return None
    return TooLargeError("the system has no memory left for this; crop or split the input, or lower max_memory.")


class UnsafeInputError(InputRefusedError):
    """Opening an input could run code that it contains."""


class WorkerError(DeconvError):
    """A process or a cluster that shares the work is gone, or cannot do it."""


class GradientFaultError(DeconvError):
    """A gradient is wrong or missing, so the loss cannot be minimized."""


class UntrustworthyResultError(DeconvError):
    """A result exists but is not to be trusted as it is."""


def import_extra(module: str, subject: str, extra: str) -> Any:  # noqa: ANN401 (the module)
    """Import a module of an optional package; raises `UsageError` if that is missing, which begins with `subject`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UsageError(f"{subject} the missing package {package}: pip install 'deconv-cli[{extra}]'.") from error


def check_type(found: object, wanted: type, role: str) -> None:
    """Raise a `UsageError` for a value of another type; `role` is its name in the message."""
    if not isinstance(found, wanted):
        package = "torch.nn." if wanted.__module__.startswith("torch.nn.") else ""
        raise UsageError(f"{role} must be of type {package}{wanted.__name__}, but is of type {type(found).__name__}.")


def as_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Return the path of a file; anything but a text or a path raises a `UsageError`."""
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"the path of a file must be a str or a Path, but is of type {type(path).__name__}.")
    return pathlib.Path(path)


_Action = Literal["error", "ignore"]
_CHOSEN = threading.local()
"""`action` is the action of this thread on warnings, if the thread is inside `warnings_here`."""


class _ByThread(type):
    """Makes a category, named after an action, that contains every warning in the threads that chose the action."""

    def __subclasscheck__(cls, category: type) -> bool:
        """Return whether this thread has chosen the action."""
        return getattr(_CHOSEN, "action", None) == cls.__name__


_CATEGORIES: dict[str, Any] = {action: _ByThread(action, (Warning,), {}) for action in ("error", "ignore")}


@contextmanager
def warnings_here(action: _Action) -> Iterator[None]:
    """Turn the warnings of this thread into errors, or ignore them; those of other threads do not change.

    `warnings.catch_warnings` acts on all threads. These filters stay, and match only in a thread inside this context.
    """
    before = getattr(_CHOSEN, "action", None)
    # Put in front again each time: that also makes Python forget which warnings it has shown once already.
    warnings.simplefilter(action, _CATEGORIES[action])
    _CHOSEN.action = action
    try:
        yield
    finally:
        _CHOSEN.action = before
