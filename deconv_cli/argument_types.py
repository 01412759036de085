"""Checks of the types of arguments."""

from __future__ import annotations

import os
from pathlib import Path

from deconv_cli.errors import UsageError


def check_type(found: object, wanted: type, role: str) -> None:
    """Refuse a value of another type by a `UsageError`; `role` is its name in the message."""
    if not isinstance(found, wanted):
        package = "torch.nn." if wanted.__module__.startswith("torch.nn.") else ""
        raise UsageError(f"{role} must be of type {package}{wanted.__name__}, but is of type {type(found).__name__}.")


def as_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file; anything but a text or a path raises a `UsageError`."""
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"the path of a file must be a str or a Path, but is of type {type(path).__name__}.")
    return Path(path)
